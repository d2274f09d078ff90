"""Splits a folder of images into a training and a held-out part, two folders of links to the files."""

import hashlib
import os

import numpy as np
from etils import epath

from rar_jax.data.image_check import class_folders
from rar_jax.data.shuffle import shuffled
from rar_jax.data.sources import check_outside
from rar_jax.errors import UserError
from rar_jax.files import begin_or_resume

# Says how a split was made.
PLAN = "split.json"
PARTS = ("train", "heldout")


def split_images(folder: epath.PathLike, output: epath.PathLike, holdout: float) -> dict[str, int]:
    """Makes the folders train and heldout below `output`, with a folder of links for each class.

    The share of each class that is held out is drawn with a fixed seed. If a class has two or more images, at least one
    is held out and at least one is not. A flat folder of images is one class.

    Args:
      folder: class folders or a folder of images.
      output: folder to write. An interrupted split is completed.
      holdout: fraction of each class that is held out.

    Returns:
      part -> its number of images.

    Raises:
      UserError: there are no images, `output` lies among them or holds another split or something else, or one of the
        folders is on a bucket.
    """
    for flag, path in (("images", folder), ("output", output)):
        if "://" in str(path):
            raise UserError(f"--{flag}={path}: the split consists of links, which a bucket cannot have: mount it")
    check_outside(folder, "--output", output)
    folder = epath.Path(folder).resolve()
    classes = class_folders(folder)
    # Names of files need not be UTF-8.
    names = "\n".join(os.path.relpath(file, folder) for files in classes.values() for file in files)
    listing = hashlib.sha256(os.fsencode(names)).hexdigest()[:12]
    output = epath.Path(output)
    begin_or_resume("output", output, PLAN, {"images": str(folder), "listing": listing, "holdout": holdout})
    counts = dict.fromkeys(PARTS, 0)
    for name, files in classes.items():
        for part, chosen in zip(PARTS, _divide(files, holdout), strict=True):
            (output / part / name).mkdir(parents=True, exist_ok=True)
            for number in chosen:
                _link(files[number], output / part / name / f"{number:06d}{epath.Path(files[number]).suffix.lower()}")
            counts[part] += len(chosen)
    return counts


def _divide(files: list[str], holdout: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of the files of a class that are trained on and of those that are held out, ascending."""
    order = shuffled(np.arange(len(files)), len(files), seed=0, epoch=0)
    count = min(len(files) - 1, max(1, round(holdout * len(files))))
    return np.sort(order[count:]), np.sort(order[:count])


def _link(file: str, link: epath.Path) -> None:
    if not os.path.lexists(link):
        os.symlink(os.path.abspath(file), link)
