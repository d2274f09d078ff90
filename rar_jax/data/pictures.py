"""Decodes image files and cuts square RGB crops: as ADM does (Dhariwal and Nichol, 2021), or at random."""

import io

import numpy as np
from PIL import Image, ImageOps

from rar_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CROPS = ("center", "ten")
# Ten crops are cut from a square whose side is this many times theirs.
_MARGIN = 1.1
# Largest allowed ratio of the sides. Beyond it, resizing would enlarge a few pixels and take gigabytes of memory.
_LONGEST = 50
# The value of white in the modes of more than eight bits.
_WHITE = {"I": 65535.0, "I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0, "F": 1.0}


def read_picture(data: bytes) -> Image.Image:
    """Decodes an image file to an upright RGB image.

    EXIF rotation is applied, transparent pixels are blended with white, 16-bit values are scaled to 8 bits, and grey,
    CMYK and palette images are converted.

    Raises:
      UserError: the data is empty, not an image or damaged, or the image is too large or too narrow.
    """
    if not data:
        raise UserError("it is empty")
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        image = ImageOps.exif_transpose(image)
    # Pillow's plugins raise many kinds of errors for damaged files.
    except Exception as error:
        reason = str(error) if not isinstance(error, Image.UnidentifiedImageError) else "it is not an image"
        raise UserError(reason or type(error).__name__) from None
    if max(image.size) > _LONGEST * min(image.size):
        raise UserError(f"it is {image.width} x {image.height} pixels, too narrow to cut a square")
    if image.mode in _WHITE:
        grey = np.asarray(image, np.float32) * (255 / _WHITE[image.mode])
        image = Image.fromarray(np.rint(grey.clip(0, 255)).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def center_square(image: Image.Image, side: int) -> np.ndarray:
    """Cuts ADM's centre crop of an image: uint8 [side, side, 3].

    The image is halved with a box filter while its short side is at least twice `side`, then resized (bicubic) until
    its short side is `side`, then cropped.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image)[top : top + side, left : left + side]


def random_square(image: Image.Image, side: int, min_crop: float, flip: bool, rng: np.random.Generator) -> np.ndarray:
    """Cuts a random square of an image, and resizes it (bicubic): uint8 [side, side, 3].

    Args:
      image: an RGB image.
      side: side of the result in pixels.
      min_crop: the least side of the square, as a fraction of the image's short side. Its side is uniform from there to
        the whole short side, and its place is uniform among all places within the image.
      flip: whether to mirror the square with probability one half.
      rng: makes the draws.
    """
    square = max(1, round(min(image.size) * rng.uniform(min_crop, 1)))
    left, top = (int(rng.integers(size - square + 1)) for size in image.size)
    cut = image.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + square, top + square))
    cut = np.asarray(cut)
    return cut[:, ::-1] if flip and rng.random() < 0.5 else cut


def square_side(crops: str, image_size: int) -> int:
    """Returns the side in pixels of the square from which crops of `image_size` are cut."""
    return int(_MARGIN * image_size) if crops == "ten" else image_size


def cut_crops(square: np.ndarray, image_size: int, crops: str, flip: bool) -> np.ndarray:
    """Cuts the crops of one image: uint8 [S, S, 3] -> [K, image_size, image_size, 3].

    The first crop is the centre. `ten` adds the four corners and the mirror images of these five crops. `center` with
    `flip` adds the mirror image of the centre.
    """
    margin = square.shape[0] - image_size
    # Python rounds halves to even, as the usual ten-crop implementations do.
    middle = round(margin / 2)
    places = [(middle, middle)]
    if crops == "ten":
        places += [(0, 0), (0, margin), (margin, 0), (margin, margin)]
    cut = [square[top : top + image_size, left : left + image_size] for top, left in places]
    if flip or crops == "ten":
        cut += [crop[:, ::-1] for crop in cut]
    return np.stack(cut)
