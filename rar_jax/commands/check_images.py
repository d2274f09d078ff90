"""Checks a folder of images before training: sizes, classes, unreadable and unusual files.

    python -m rar_jax check_images --images=FOLDER --image_size=64

The exit code is 2 if something must be mended.
"""

from absl import flags

from rar_jax.checkpoints.weights import load_weights
from rar_jax.commands import cli, shared_flags
from rar_jax.data.image_check import check_images
from rar_jax.errors import UserError

_IMAGES = flags.DEFINE_string("images", None, "Folder of class folders, or a folder of images, which are one class.")
_TOKENIZER, _IMAGE_SIZE = shared_flags.define_tokenizer()


def main(argv):
    del argv
    if not _IMAGES.value:
        raise UserError("name the images with --images=FOLDER")
    downsampling = load_weights(_TOKENIZER.value, "vqgan").model.config.downsampling if _TOKENIZER.value else None
    report = check_images(_IMAGES.value, _IMAGE_SIZE.value, downsampling)
    print(report.summary)
    for note in report.notes:
        print(f"note: {note}")
    for problem in report.problems:
        print(f"problem: {problem}")
    if report.problems:
        raise UserError(f"{_IMAGES.value} cannot be trained on yet: see the problems above ({len(report.problems)})")


if __name__ == "__main__":
    cli.run(main)
