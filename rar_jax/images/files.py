"""Lays images out in grids, and writes images and animations to files."""

import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from rar_jax.files import replacing

# Smaller images are enlarged to about this width in a grid, and smoothed, because blocks of pixels are hard to read.
_MIN_WIDTH = 64
# Smallest font size in pixels.
_MIN_TEXT = 14
# Duration of each frame of an animation, and of the last one.
_MILLISECONDS = 80
_LAST_MILLISECONDS = 3000


def image_grid(images: np.ndarray, columns: int, row_names: Sequence[str] = ()) -> np.ndarray:
    """Lays images out in a grid with white lines between them. Tiny images are enlarged (bicubic).

    Args:
      images: uint8 [N, H, W, 3].
      columns: images per line of the grid. The last line is filled with white.
      row_names: names of the lines of the grid, drawn to their left.

    Returns:
      uint8 [height, width, 3].
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
    """Orders images for a grid that shows the counterparts of each line of images in the line below.

    Args:
      above: uint8 [N, H, W, 3].
      below: uint8 [N, H, W, 3], the counterparts.
      columns: images per line of the grid. The last line of each kind is filled with white images.

    Returns:
      uint8 [M, H, W, 3], for `image_grid` with the same `columns`.
    """
    blank = np.full((-len(above) % columns, *above.shape[1:]), 255, np.uint8)
    rows = [np.concatenate([part, blank]).reshape(-1, 1, columns, *above.shape[1:]) for part in (above, below)]
    return np.concatenate(rows, axis=1).reshape(-1, *above.shape[1:])


def write_png(path: epath.PathLike, image: np.ndarray) -> None:
    """Writes an image, uint8 [H, W, 3], to a PNG file. Creates the folder if necessary."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        Image.fromarray(image).save(file, format="PNG")


def write_animation(path: epath.PathLike, frames: Sequence[np.ndarray]) -> None:
    """Writes frames, uint8 [H, W, 3], to an animated GIF or WebP file, chosen by the suffix of the path.

    The animation repeats, and shows the last frame longer. Creates the folder if necessary.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(encode_animation(frames, path.suffix[1:]))


def encode_animation(frames: Sequence[np.ndarray], suffix: str) -> bytes:
    """Returns the contents of an animated file, gif or webp (`write_animation`)."""
    first, *rest = map(Image.fromarray, frames)
    durations = [_MILLISECONDS] * len(rest) + [_LAST_MILLISECONDS]
    file = io.BytesIO()
    first.save(file, suffix, save_all=True, append_images=rest, duration=durations, loop=0, lossless=True)
    return file.getvalue()
