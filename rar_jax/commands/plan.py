"""Plans the training of a tokenizer and of a RAR on images, for this machine, and writes their config files.

    python -m rar_jax plan --images=SPLIT --image_size=64 --hours=2 --out=FOLDER

SPLIT is the output of split_images. The command measures the machine, chooses sizes, steps and epochs, prints the
reasons and the times, and writes FOLDER/tokenizer.py, FOLDER/rar.py and FOLDER/plan.txt.
"""

import math

from absl import flags

from rar_jax.checkpoints.weights import load_weights
from rar_jax.commands import cli, shared_flags
from rar_jax.errors import UserError
from rar_jax.own_images.plan import open_split, this_machine, write_plan
from rar_jax.run_folder import check_folder

_IMAGES = flags.DEFINE_string("images", None, "Folder that split_images wrote.")
_TOKENIZER, _IMAGE_SIZE = shared_flags.define_tokenizer(
    "Weights of a VQGAN to fit to the images. Default: a tokenizer is trained from scratch."
)
_HOURS = flags.DEFINE_float("hours", 2.0, "Hours for the training of the tokenizer and the RAR together.", 0.0)
_INCEPTION = flags.DEFINE_string(
    "inception", "", "Weights of the FID Inception network, for the tokenizer's perceptual loss and rFID."
)
_OUT = flags.DEFINE_string("out", None, "Folder of the config files and later of the runs.")


def main(argv):
    del argv
    cli.keep_compiled_programs()
    if not _IMAGES.value or not _OUT.value:
        raise UserError("name the images with --images=SPLIT and the folder to write with --out")
    if not 0 < _HOURS.value < math.inf:
        raise UserError(f"--hours={_HOURS.value} must be a number above 0")
    check_folder("out", _OUT.value)
    images, published = open_split(_IMAGES.value, _IMAGE_SIZE.value), None
    if _TOKENIZER.value:
        published = _TOKENIZER.value, load_weights(_TOKENIZER.value, "vqgan").model.config
    print(write_plan(_OUT.value, images, this_machine(), _HOURS.value, published, _INCEPTION.value))
