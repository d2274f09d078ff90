"""Measures the training step: python -m rar_jax benchmark train --config=configs/rar_b.py."""

from absl import flags
from ml_collections import config_flags

from rar_jax.commands import cli
from rar_jax.config import without_data
from rar_jax.performance.benchmarks import train
from rar_jax.performance.benchmarks.report import check_json, show

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the experiment. Its data is not read.")
_STEPS = flags.DEFINE_integer("steps", 5, "Number of timed steps, after two warm-up steps.", lower_bound=1)
_PROFILE = flags.DEFINE_string("profile", None, "Folder to which a trace of one step is written, for TensorBoard.")
_JSON = flags.DEFINE_string("json", None, "File to which the results are also written.")


def main(argv):
    del argv
    check_json(_JSON.value)
    config = without_data(_CONFIG.value)
    cli.set_deterministic(config.train.deterministic)
    show(train.measure(config, _STEPS.value, _PROFILE.value), _JSON.value)
