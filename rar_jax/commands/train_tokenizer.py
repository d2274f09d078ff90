"""Trains a tokenizer (a VQGAN) on images, or resumes a run that was stopped.

    python -m rar_jax train_tokenizer --config=configs/tokenizers/f16.py --images=FOLDER --workdir=RUN
    python -m rar_jax train_tokenizer --config=configs/tokenizers/glyphs.py --workdir=RUN

The run's folder is a tokenizer: name it with --tokenizer=RUN. The exit code is 75 if the run was preempted and saved:
the same command resumes it.
"""

from absl import flags
from ml_collections import config_flags

from rar_jax.commands import cli, training
from rar_jax.errors import UserError
from rar_jax.schema import build_config
from rar_jax.tokenizer_config import TokenizerConfig
from rar_jax.tokenizer_training.run import prepare

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file of the tokenizer, such as configs/tokenizers/f16.py."
)
cli.declare_schema(TokenizerConfig)
_IMAGES = flags.DEFINE_string("images", None, "Folder of JPEG, PNG or WebP images. The same as --config.data.images.")
_INCEPTION = flags.DEFINE_string(
    "inception",
    None,
    "Weights of the FID Inception network, for the perceptual loss and rFID. The same as --config.inception.",
)
_TRAIN = training.define_run()


def main(argv):
    del argv
    if _CONFIG.value is None:
        raise UserError("name a tokenizer with --config=configs/tokenizers/NAME.py")
    fields = _CONFIG.value.copy_and_resolve_references().to_dict()
    if _IMAGES.value:
        fields["data"]["images"] = _IMAGES.value
    if _INCEPTION.value:
        fields["inception"] = _INCEPTION.value
    _TRAIN(build_config(fields, TokenizerConfig), prepare)
