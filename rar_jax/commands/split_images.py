"""Splits a folder of images into a training and a held-out part, as folders of links.

    python -m rar_jax split_images --images=FOLDER --output=SPLIT

SPLIT/train and SPLIT/heldout then have a folder of links for each class. If it is stopped, the same command resumes it.
"""

import math

from absl import flags

from rar_jax.data.split import split_images
from rar_jax.errors import UserError
from rar_jax.run_folder import check_folder

_IMAGES = flags.DEFINE_string("images", None, "Folder of class folders, or a folder of images, which are one class.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write, on a local file system.")
_HOLDOUT = flags.DEFINE_float("holdout", 0.1, "Fraction of each class that is held out; at least one image.", 0.0, 0.9)


def main(argv):
    del argv
    if not _IMAGES.value or not _OUTPUT.value:
        raise UserError("name the images with --images=FOLDER and the folder to write with --output")
    if math.isnan(_HOLDOUT.value):
        raise UserError("--holdout=nan must be a number from 0 to 0.9")
    check_folder("output", _OUTPUT.value)
    counts = split_images(_IMAGES.value, _OUTPUT.value, _HOLDOUT.value)
    print(f"{_OUTPUT.value}: " + ", ".join(f"{count:,} images in {part}" for part, count in counts.items()))
