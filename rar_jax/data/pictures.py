"""Image files to square RGB arrays, cropped as ADM does (Dhariwal and Nichol, 2021)."""

import io

import numpy as np
from PIL import Image, ImageOps

from rar_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CROPS = ("center", "ten")
# Ten crops are cut from a picture this much larger than they are.
_MARGIN = 1.1
# Times as long as wide; beyond it, a centre square would be a blow-up of a few pixels, and take gigabytes to make.
_LONGEST = 50
# Modes of more than eight bits: what stands for white.
_WHITE = {"I": 65535.0, "I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0, "F": 1.0}


def read_picture(data: bytes) -> Image.Image:
    """Decodes an image file to RGB, upright.

    EXIF rotation is applied, transparency is laid on white, 16 bits are scaled to 8; grey, CMYK and palette are
    converted.

    Raises:
      UserError: it is empty, not an image, damaged, too large or too narrow.
    """
    if not data:
        raise UserError("it is empty")
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        image = ImageOps.exif_transpose(image)
    # Damaged files make Pillow's plugins raise many kinds.
    except Exception as error:
        reason = str(error) if not isinstance(error, Image.UnidentifiedImageError) else "it is not an image"
        raise UserError(reason or type(error).__name__) from None
    if max(image.size) > _LONGEST * min(image.size):
        raise UserError(f"it is {image.width} x {image.height} pixels: too narrow for a square")
    if image.mode in _WHITE:
        grey = np.asarray(image, np.float32) * (255 / _WHITE[image.mode])
        image = Image.fromarray(np.rint(grey.clip(0, 255)).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def center_square(image: Image.Image, side: int) -> np.ndarray:
    """ADM's centre crop: uint8 [side, side, 3].

    Halved with a box filter while the short side is at least twice `side`, then bicubic to it, then cut.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image)[top : top + side, left : left + side]


def square_side(crops: str, image_size: int) -> int:
    """Side of the square that crops of `image_size` are cut from."""
    return int(_MARGIN * image_size) if crops == "ten" else image_size


def cut_crops(square: np.ndarray, image_size: int, crops: str, flip: bool) -> np.ndarray:
    """The crops of one image: uint8 [S, S, 3] -> [K, image_size, image_size, 3].

    The centre comes first. `ten` adds the four corners and the mirrors of these five; `center` with `flip` adds its
    mirror.
    """
    margin = square.shape[0] - image_size
    # Python's round, to even, as the usual ten-crop has it.
    middle = round(margin / 2)
    places = [(middle, middle)]
    if crops == "ten":
        places += [(0, 0), (0, margin), (margin, 0), (margin, margin)]
    cut = [square[top : top + image_size, left : left + image_size] for top, left in places]
    if flip or crops == "ten":
        cut += [crop[:, ::-1] for crop in cut]
    return np.stack(cut)
