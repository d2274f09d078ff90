"""Images on disk: PNG grids, and the .npz format of the ADM evaluator."""

import numpy as np
from etils import epath
from PIL import Image

# Tiny images are enlarged to about this width in a grid, smoothly: blocks of pixels are harder to read.
_MIN_WIDTH = 64


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Lays images out in rows, with a line of white between; tiny ones are enlarged (bicubic).

    Args:
      images: uint8 [N, H, W, 3].
      columns: images a row; a last row that is not full ends in white.

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
    return canvas


def interleave_rows(above: np.ndarray, below: np.ndarray, columns: int) -> np.ndarray:
    """For a grid that has below each row of images that of their counterparts, uint8 [N, H, W, 3] each."""
    blank = np.full((-len(above) % columns, *above.shape[1:]), 255, np.uint8)
    rows = [np.concatenate([part, blank]).reshape(-1, 1, columns, *above.shape[1:]) for part in (above, below)]
    return np.concatenate(rows, axis=1).reshape(-1, *above.shape[1:])


def write_png(path: epath.PathLike, image: np.ndarray) -> None:
    """Writes one image, uint8 [H, W, 3]; its folder is made if need be."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.fromarray(image).save(file, format="PNG")


def write_npz(path: epath.PathLike, images: np.ndarray) -> None:
    """Writes uint8 [N, H, W, 3] as the ADM evaluator reads them: one array, named arr_0."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, arr_0=images)
