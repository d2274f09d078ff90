"""Images on disk: PNG files and grids."""

from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from rar_jax.files import replacing

# Tiny images are enlarged to about this width in a grid, smoothly: blocks of pixels are harder to read.
_MIN_WIDTH = 64
# Height of letters in pixels.
_MIN_TEXT = 14
# How long a frame of an animation is shown, and its last.
_MILLISECONDS = 80
_LAST_MILLISECONDS = 3000


def image_grid(images: np.ndarray, columns: int, row_names: Sequence[str] = ()) -> np.ndarray:
    """Lays images out in rows, with a line of white between; tiny ones are enlarged (bicubic).

    Args:
      images: uint8 [N, H, W, 3].
      columns: images a row; a last row that is not full ends in white.
      row_names: drawn in front of the rows.

    Returns:
      uint8 [rows, columns, 3].
    """
    zoom = max(1, _MIN_WIDTH // images.shape[2])
    if zoom > 1:
        size = images.shape[2] * zoom, images.shape[1] * zoom
        images = np.stack(
            [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in images]
        )
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    gap = max(2, width // 24)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    if not row_names:
        return canvas
    font = ImageFont.load_default(max(_MIN_TEXT, width // 12))
    margin = gap + max(round(font.getlength(name)) for name in row_names)
    named = Image.new("RGB", (margin + canvas.shape[1], canvas.shape[0]), "white")
    named.paste(Image.fromarray(canvas), (margin, 0))
    for row, name in enumerate(row_names):
        middle = gap + row * (height + gap) + height // 2
        ImageDraw.Draw(named).text((margin, middle), name, "black", font, anchor="rm")
    return np.asarray(named)


def interleave_rows(above: np.ndarray, below: np.ndarray, columns: int) -> np.ndarray:
    """For a grid that has below each row of images that of their counterparts, uint8 [N, H, W, 3] each."""
    blank = np.full((-len(above) % columns, *above.shape[1:]), 255, np.uint8)
    rows = [np.concatenate([part, blank]).reshape(-1, 1, columns, *above.shape[1:]) for part in (above, below)]
    return np.concatenate(rows, axis=1).reshape(-1, *above.shape[1:])


def write_png(path: epath.PathLike, image: np.ndarray) -> None:
    """Writes one image, uint8 [H, W, 3]; its folder is made if need be."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        Image.fromarray(image).save(file, format="PNG")


def write_animation(path: epath.PathLike, frames: Sequence[np.ndarray]) -> None:
    """Writes frames, uint8 [H, W, 3], as an animated GIF or WebP, by the ending of the name; it lingers on the last."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = map(Image.fromarray, frames)
    durations = [_MILLISECONDS] * len(rest) + [_LAST_MILLISECONDS]
    with replacing(path) as file:
        first.save(file, path.suffix[1:], save_all=True, append_images=rest, duration=durations, loop=0, lossless=True)
