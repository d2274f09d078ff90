"""The Python API: load a checkpoint, generate images, show them.

from rar_jax.generate import load, show
generator = load("runs/digits")
show(generator.generate([0, 1, 2, 3], seed=1)).save("digits.png")
"""

import numpy as np
from PIL import Image

from rar_jax.generation.generator import Generator
from rar_jax.generation.loading import load
from rar_jax.images.files import image_grid

__all__ = ["Generator", "load", "show"]


def show(images: np.ndarray, columns: int = 8) -> Image.Image:
    """Returns images uint8 [N, H, W, 3] as one grid with `columns` columns, which a notebook displays."""
    return Image.fromarray(image_grid(images, columns))
