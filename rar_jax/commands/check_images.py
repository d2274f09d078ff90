"""Checks a folder of images before training: sizes, classes, unreadable and unusual files.

    python -m rar_jax check_images --images=FOLDER --image_size=64

The exit code is 2 if something must be mended.
"""

from collections.abc import Callable

from absl import flags

from rar_jax.checkpoints.weights import load_weights
from rar_jax.commands import shared_flags
from rar_jax.data.image_check import check_images
from rar_jax.errors import UserError
from rar_jax.files import printable
from rar_jax.own_images.tokenizer_plan import chosen_patch

_IMAGES = flags.DEFINE_string("images", None, "Folder of class folders, or a folder of images, which are one class.")
_TOKENIZER, _IMAGE_SIZE = shared_flags.define_tokenizer(
    "Weights of a VQGAN that will be fitted to the images. Default: a tokenizer is trained from scratch."
)


def _patch() -> Callable[[int], int]:
    """Returns size of the images -> downsampling of the tokenizer."""
    if not _TOKENIZER.value:
        return chosen_patch
    downsampling = load_weights(_TOKENIZER.value, "vqgan").model.config.downsampling
    return lambda image_size: downsampling


def main(argv):
    del argv
    if not _IMAGES.value:
        raise UserError("name the images with --images=FOLDER")
    report = check_images(_IMAGES.value, _IMAGE_SIZE.value, _patch())
    lines = [report.summary, *(f"note: {note}" for note in report.notes)]
    lines += [f"problem: {problem}" for problem in report.problems]
    print("\n".join(map(printable, lines)))
    if report.problems:
        raise UserError(f"{_IMAGES.value} cannot be trained on yet: see the problems above ({len(report.problems)})")
