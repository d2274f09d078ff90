"""Measures the decode loop: python -m rar_jax benchmark sample --config=configs/rar_b.py --batch_size=1,8."""

from absl import flags
from ml_collections import config_flags

from rar_jax.commands import cli
from rar_jax.config import DTYPES, without_data
from rar_jax.performance.benchmarks import sample
from rar_jax.performance.benchmarks.report import check_json, show

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the experiment. Its data is not read.")
_BATCHES = flags.DEFINE_list(
    "batch_size", ["1", "8"], "Numbers of images decoded at once. Each of them is measured separately."
)
_STEPS = flags.DEFINE_list(
    "steps",
    [],
    "Numbers of passes that draw all tokens; 0 draws one per pass. Each is measured separately. Default: "
    "config.sample.steps.",
)
_DTYPE = flags.DEFINE_enum("dtype", None, DTYPES, "Compute dtype. Default: float32 on a CPU, otherwise the config's.")
_DETOKENIZE = flags.DEFINE_bool(
    "detokenize", True, "Also measure with a tokenizer of the published f16 size, if the codebook has its size."
)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Number of timed batches, after one warm-up batch.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "File to which the results are also written.")


def main(argv):
    del argv
    check_json(_JSON.value)
    batches, steps = (cli.read_numbers(each, int, "1,8") for each in (_BATCHES, _STEPS))
    options = {"dtype": _DTYPE.value, "detokenize": _DETOKENIZE.value, "repeats": _REPEATS.value}
    show(sample.measure(without_data(_CONFIG.value), batches, steps, **options), _JSON.value)
