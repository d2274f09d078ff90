"""Measures a tokenizer's step: python -m rar_jax benchmark train_tokenizer --config=configs/tokenizers/f16.py."""

from absl import flags
from ml_collections import config_flags

from rar_jax.commands import cli
from rar_jax.performance.benchmarks import train_tokenizer
from rar_jax.performance.benchmarks.report import check_json, show
from rar_jax.tokenizer_config import TokenizerConfig, without_images

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the tokenizer. No image is read.")
cli.declare_schema(TokenizerConfig)
_STEPS = flags.DEFINE_integer("steps", 5, "Number of timed steps, after two warm-up steps.", lower_bound=1)
_PROFILE = flags.DEFINE_string("profile", None, "Folder to which a trace of one step is written, for TensorBoard.")
_JSON = flags.DEFINE_string("json", None, "File to which the results are also written.")


def main(argv):
    del argv
    check_json(_JSON.value)
    config = without_images(_CONFIG.value)
    cli.set_deterministic(config.train.deterministic)
    show(train_tokenizer.measure(config, _STEPS.value, _PROFILE.value), _JSON.value)
