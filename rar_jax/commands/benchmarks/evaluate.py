"""Measures the parts of an evaluation: python -m rar_jax benchmark evaluate."""

from absl import flags

from rar_jax.performance.benchmarks import evaluate
from rar_jax.performance.benchmarks.report import check_json, show

_INCEPTION = flags.DEFINE_string("inception", None, "Weights of the Inception network. Default: random weights.")
_BATCHES = flags.DEFINE_integer("batches", 12, "Number of timed batches of Inception features.", lower_bound=1)
_SAMPLES = flags.DEFINE_integer("samples", 50_000, "Number of samples for precision and recall.", lower_bound=16)
_REFERENCES = flags.DEFINE_integer(
    "references", 10_000, "Number of reference images for precision and recall.", lower_bound=16
)
_JSON = flags.DEFINE_string("json", None, "File to which the results are also written.")


def main(argv):
    del argv
    check_json(_JSON.value)
    numbers = {"batches": _BATCHES.value, "num_samples": _SAMPLES.value, "num_references": _REFERENCES.value}
    show(evaluate.measure(_INCEPTION.value, **numbers), _JSON.value)
