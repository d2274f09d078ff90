"""The embedded data set: the UCI handwritten digits that come with scikit-learn.

It has 1,797 real images of 8x8 pixels with 17 grey levels, in 10 classes.
"""

import functools
import os
import shutil
from collections.abc import Callable

import numpy as np
from etils import epath
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from rar_jax.data.records import DESCRIPTION, Description, check_local, write_records
from rar_jax.errors import UserError
from rar_jax.files import aside

CLASS_NAMES = tuple(str(digit) for digit in range(10))
SPLITS = ("train", "heldout")


class DigitsTokenizer:
    """A tokenizer whose codes are the 17 grey levels. Each pixel is one token."""

    fingerprint = "digits"
    batch_size = 256
    grid_side = 8
    codebook_size = 17
    downsampling = 1

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Encodes images: uint8 [B, 8, 8, 3] -> int32 [B, 64]. It inverts `decode` exactly."""
        grey = np.asarray(images, np.float32).mean(axis=-1)
        return np.rint(grey * 16 / 255).astype(np.int32).reshape(len(images), -1)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Decodes codes: int [B, 64] -> uint8 [B, 8, 8, 3]."""
        grey = np.rint(np.asarray(tokens) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        return np.repeat(grey, 3, axis=-1)

    def begin_decode(self, tokens: np.ndarray) -> Callable[[], np.ndarray]:
        """Returns a function that decodes the codes when it is called."""
        return functools.partial(self.decode, tokens)


@functools.cache
def digits_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images of a split and their labels.

    A fifth of the images of each digit is held out. They are drawn at random with a fixed seed.

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
    """Writes the token records of both splits under `folder`, unless they exist. Returns split -> its folder.

    Each split is written to a temporary folder, which is then renamed, so that runs that start together do not disturb
    each other.

    Raises:
      UserError: `folder` or the folder of a split exists but is something else.
    """
    check_local(folder)
    folder = epath.Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder: remove it, or set --config.data.path to another folder")
    tokenizer = DigitsTokenizer()
    folders = {split: folder / split for split in SPLITS}
    for split, target in folders.items():
        # In this order, because another process may put the folder in place at any time.
        exists = target.exists()
        if (target / DESCRIPTION).exists():
            continue
        if exists:
            raise UserError(
                f"{target} exists but holds no token records: remove it, or set --config.data.path to another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        images, labels = digits_split(split)
        described = Description(
            grid_side=tokenizer.grid_side,
            codebook_size=tokenizer.codebook_size,
            class_names=CLASS_NAMES,
            tokenizer=tokenizer.fingerprint,
            source=f"UCI handwritten digits, {split}",
        )
        partial = aside(target)
        try:
            write_records(partial, zip(tokenizer.encode(images), labels, strict=True), described)
            os.rename(partial, target)
        except OSError:
            # Another process may have made the same records meanwhile.
            if not (target / DESCRIPTION).exists():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folders
