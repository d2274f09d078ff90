"""The embedded data set: the UCI handwritten digits that scikit-learn ships.

1,797 real images of 8x8 pixels in 17 grey levels and 10 classes.
"""

import functools
import os
import shutil
import tempfile
from collections.abc import Callable

import numpy as np
from etils import epath
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from rar_jax.data.records import DESCRIPTION, write_records
from rar_jax.errors import UserError

CLASS_NAMES = tuple(str(digit) for digit in range(10))
SPLITS = ("train", "heldout")


class DigitsTokenizer:
    """A grey level is a code: each pixel is a token."""

    fingerprint = "digits"
    batch_size = 256
    grid_side = 8
    codebook_size = 17
    downsampling = 1

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 [B, 8, 8, 3] -> codes int32 [B, 64]; the 17 grey levels come back exactly from `decode`."""
        grey = np.asarray(images, np.float32).mean(axis=-1)
        return np.rint(grey * 16 / 255).astype(np.int32).reshape(len(images), -1)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Codes int [B, 64] -> uint8 [B, 8, 8, 3]."""
        grey = np.rint(np.asarray(tokens) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        return np.repeat(grey, 3, axis=-1)

    def begin_decode(self, tokens: np.ndarray) -> Callable[[], np.ndarray]:
        """As `decode`, when what it returns is called."""
        return functools.partial(self.decode, tokens)


@functools.cache
def digits_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images of a split and their labels.

    A fifth of each digit is held out, drawn at random once and for all.

    Args:
      split: one of `SPLITS`.

    Returns:
      uint8 [N, 8, 8, 3] and int32 [N]; N is 1,437 for train and 360 for heldout.
    """
    levels, labels = load_digits(return_X_y=True)
    train, heldout = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    chosen = np.sort({"train": train, "heldout": heldout}[split])
    return DigitsTokenizer().decode(levels[chosen]), labels[chosen].astype(np.int32)


def write_digits(folder: epath.PathLike) -> dict[str, epath.Path]:
    """Writes the records of both splits under `folder`, unless they are there: split -> its folder.

    Each is written aside and moved into place, so that runs started together do not disturb each other.
    """
    folder = epath.Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder: remove it, or set --config.data.path")
    tokenizer = DigitsTokenizer()
    folders = {split: folder / split for split in SPLITS}
    for split, target in folders.items():
        if (target / DESCRIPTION).exists():
            continue
        if target.exists():
            raise UserError(f"{target} is there but holds no token records: remove it, or set --config.data.path")
        folder.mkdir(parents=True, exist_ok=True)
        images, labels = digits_split(split)
        aside = tempfile.mkdtemp(dir=folder)
        write_records(
            aside,
            zip(tokenizer.encode(images), labels, strict=True),
            grid_side=tokenizer.grid_side,
            codebook_size=tokenizer.codebook_size,
            class_names=CLASS_NAMES,
            tokenizer=tokenizer.fingerprint,
            source=f"UCI handwritten digits, {split}",
        )
        try:
            os.rename(aside, target)
        except OSError:
            shutil.rmtree(aside)
            if not (target / DESCRIPTION).exists():
                raise
    return folders
