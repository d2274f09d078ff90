"""Editing of images: which tokens a mask covers, and reading of images and masks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from rar_jax.data.pictures import center_square, read_picture
from rar_jax.data.tokenizers import Tokenizer
from rar_jax.errors import UserError, naming


def token_masks(masks: np.ndarray, tokenizer: Tokenizer, num_images: int, margin: int) -> np.ndarray:
    """Returns the tokens that a mask of pixels covers: a token is masked if any of its pixels is.

    Args:
      masks: bool [H, W], the same for all images, or [N, H, W].
      tokenizer: decides the grid.
      num_images: N.
      margin: rings of tokens around the mask that are masked too, because neighbouring tokens know what was under it.

    Returns:
      bool [N, T].

    Raises:
      UserError: the masks have another size than the images, or their number is not N.
    """
    side, patch = tokenizer.grid_side, tokenizer.downsampling
    masks = np.asarray(masks, bool)
    if masks.shape[-2:] != (side * patch,) * 2 or masks.shape[:-2] not in ((), (num_images,)):
        raise UserError(
            f"masks of shape {masks.shape} must have the shape {(side * patch,) * 2}, or one mask for each of the "
            f"{num_images} images"
        )
    covered = np.broadcast_to(masks, (num_images, *masks.shape[-2:])).reshape(num_images, side, patch, side, patch)
    covered = covered.any(axis=(2, 4))
    for _ in range(margin):
        grown = np.pad(covered, ((0, 0), (1, 1), (1, 1)))
        # The ring around a token includes its diagonal neighbours.
        covered = np.any([grown[:, y : y + side, x : x + side] for y in range(3) for x in range(3)], axis=0)
    return covered.reshape(num_images, -1)


class Canvas(NamedTuple):
    """An image of the model's size, and the pixels to draw.

    Attributes:
      image: uint8 [S, S, 3].
      mask: bool [S, S].
    """

    image: np.ndarray
    mask: np.ndarray


def read_image(path: epath.PathLike) -> Image.Image:
    """Reads an image file. Raises a `UserError` that names it if it is not an image."""
    with naming(str(path)):
        return read_picture(epath.Path(path).read_bytes())


def read_canvas(path: epath.PathLike, side: int, mask: np.ndarray | None, place: Sequence[int] | None) -> Canvas:
    """Reads an image to edit.

    Args:
      path: the image file. It is resized and cropped to the centre square, as in `tokenize`, unless `place` is given.
      side: S, the side of the model's images.
      mask: bool [S, S], the pixels to draw, or None for none.
      place: top and left pixel of the image on the canvas; what is around it is drawn (outpainting).

    Raises:
      UserError: the file is not an image, or the image does not fit on the canvas at its place.
    """
    image = read_image(path)
    mask = np.zeros((side, side), bool) if mask is None else mask
    if place is None:
        return Canvas(center_square(image, side), mask)
    (top, left), (width, height) = place, image.size
    if min(top, left) < 0 or top + height > side or left + width > side:
        raise UserError(
            f"--place={top},{left}: {path} is {width} x {height} pixels and does not fit there on the model's "
            f"{side} x {side}"
        )
    canvas, around = np.full((side, side, 3), 128, np.uint8), np.ones((side, side), bool)
    canvas[top : top + height, left : left + width] = np.asarray(image)
    around[top : top + height, left : left + width] = False
    return Canvas(canvas, around | mask)


def box_mask(box: Sequence[int], side: int) -> np.ndarray:
    """Returns bool [S, S], true from (top, left) to before (bottom, right).

    Raises:
      UserError: the box is empty, or not within the image.
    """
    top, left, bottom, right = box
    if not (0 <= top < bottom <= side and 0 <= left < right <= side):
        raise UserError(f"--box={','.join(map(str, box))} must be top,left,bottom,right within 0 to {side}")
    mask = np.zeros((side, side), bool)
    mask[top:bottom, left:right] = True
    return mask


def read_mask(path: epath.PathLike, side: int) -> np.ndarray:
    """Reads a mask image, cropped like the images: bool [S, S], true where it is lighter than middle grey."""
    return center_square(read_image(path), side).mean(axis=-1) > 127
