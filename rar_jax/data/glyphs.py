"""The embedded data set `glyphs`: colour pictures of digits and capital letters, 32 x 32 pixels.

A picture is a pure function of its split and number. Its draws are integer hashes, and its pixels come from them and
from the font files by operations that IEEE 754 defines to the last bit (see `outlines`), so that every machine makes
the same bytes.
"""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rar_jax.data.outlines import CHARACTERS, FACES, coverage, outlines
from rar_jax.data.shuffle import mix
from rar_jax.errors import UserError

SIDE = 32
# The first 12 digits of the SHA-256 digest of the first 100 images of every split with 36 classes. A test compares it
# with the images, and results that are computed from them and cached are stored under it.
IDENTITY = "00b8bba0f6b2"
# Number of images of the held-out set whose losses a run measures.
NUM_HELDOUT = 3600
NUM_CLASSES = (10, 36)
_UNSEEN = ("DejaVuSansMono-Oblique", "STIXGeneralBol", "cmss10", "cmti10")
_SEEN = tuple(face for face in FACES if face not in _UNSEEN)
# The faces of each split, and the numbers of its draws.
_SPLITS = {"train": (0, _SEEN), "heldout": (1, _SEEN), "unseen_faces": (2, _UNSEEN)}
SPLITS = tuple(_SPLITS)

# The increment of SplitMix64, the generator whose finaliser `mix` is.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MAX_IMAGES = 2**32
# Pairs of colours among which the first with enough contrast is taken.
_PAIRS = 16
# Draws for the shape, the direction of the gradient, the pairs of colours, and the colour that the gradient ends with.
_DRAWS = (8, 1, 6 * _PAIRS, 3)
_MIN_CONTRAST = 0.35
# Weights of red, green and blue in the brightness of a colour (ITU-R BT.601).
_BRIGHTNESS = (0.299, 0.587, 0.114)
# Tangent of a quarter of the range of angles, -12 to 12 degrees.
_MAX_HALF_TANGENT = 0.1051
# Images that are coloured together, to bound memory.
_CHUNK = 256


def class_names(num_classes: int) -> tuple[str, ...]:
    """Returns the characters of the ten classes (digits) or of all 36 (digits and capital letters).

    Raises:
      UserError: there is no such set of classes.
    """
    if num_classes not in NUM_CLASSES:
        raise UserError(f"num_classes={num_classes}: the glyphs have 10 classes (digits) or 36 (and capital letters)")
    return tuple(CHARACTERS[:num_classes])


def glyph_images(split: str, indices: Sequence[int], num_classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Draws images of a split.

    Args:
      split: train (18 faces), heldout (new draws of these faces) or unseen_faces (4 other faces).
      indices: int [N], the images' numbers, from 0. Any number below 2**32 names an image.
      num_classes: 10 or 36. The label of image i is i % num_classes.

    Returns:
      uint8 [N, 32, 32, 3] and int32 [N].

    Raises:
      UserError: there is no such split or number of classes, or matplotlib's font files are other ones.
    """
    names = class_names(num_classes)
    if split not in _SPLITS:
        raise UserError(f"glyphs have no split {split!r}: choose one of {', '.join(SPLITS)}")
    indices = np.asarray(indices, np.int64)
    if len(indices) and not 0 <= indices.min() <= indices.max() < _MAX_IMAGES:
        raise ValueError(f"indices must be from 0 to {_MAX_IMAGES - 1}")
    labels = (indices % num_classes).astype(np.int32)
    images = np.empty((len(indices), SIDE, SIDE, 3), np.uint8)
    for start in range(0, len(indices), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        images[chunk] = _draw(split, indices[chunk], [names[label] for label in labels[chunk]])
    return images, labels


def _draw(split: str, indices: np.ndarray, characters: Sequence[str]) -> np.ndarray:
    number, faces = _SPLITS[split]
    shape, direction, pairs, change = np.split(_draws(number, indices), np.cumsum(_DRAWS)[:-1], axis=1)
    covered = np.stack([_covered(row, faces, character) for row, character in zip(shape, characters, strict=True)])
    start, foreground = _contrasting(pairs.reshape(-1, _PAIRS, 2, 3))
    end = np.clip(start + _between(change, -0.25, 0.25), 0, 1)
    behind = _gradient(direction[:, 0], start, end)
    pixels = behind + (foreground[:, None, None] - behind) * covered[..., None]
    return np.rint(pixels * 255).astype(np.uint8)


def _draws(number: int, indices: np.ndarray) -> np.ndarray:
    """Returns draws for each image of a split, uniform in [0, 1): float64 [N, sum(_DRAWS)]."""
    images = np.uint64(number * _MAX_IMAGES) + indices.astype(np.uint64)
    counters = images[:, None] * np.uint64(sum(_DRAWS)) + np.arange(sum(_DRAWS), dtype=np.uint64)
    return (mix(counters * _INCREMENT, np.uint64(0)) >> np.uint64(11)) * 2.0**-53


def _between(draws, low: float, high: float):
    return low + (high - low) * draws


def _rotation(half_tangent):
    """Returns the cosine and sine of an angle, given the tangent of its half."""
    squared = half_tangent * half_tangent
    return (1 - squared) / (1 + squared), 2 * half_tangent / (1 + squared)


def _covered(draws: np.ndarray, faces: Sequence[str], character: str) -> np.ndarray:
    """Returns how much of each pixel a character covers, with a drawn face, rotation, shear, size, weight and place."""
    face, angle, shear, size, aspect, weight, x, y = draws.tolist()
    cosine, sine = _rotation(_between(angle, -_MAX_HALF_TANGENT, _MAX_HALF_TANGENT))
    shear, height = _between(shear, -0.15, 0.15), _between(size, 18, 24)
    width = height * _between(aspect, 0.85, 1.1)
    # Sheared, then rotated, with y turned from up to down.
    matrix = (cosine * width, (sine - cosine * shear) * height, sine * width, -(sine * shear + cosine) * height)
    shift = [SIDE / 2 + _between(place, -2.5, 2.5) for place in (x, y)]
    outline = outlines(faces[int(face * len(faces))])[character]
    return coverage(outline, _between(weight, -0.01, 0.03), matrix, shift, SIDE)


def _contrasting(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chooses among pairs of colours, float64 [N, P, 2, 3], the first with enough contrast, or else the one with most.

    Returns:
      The colours of the background and of the character, float64 [N, 3] each.
    """
    red, green, blue = (weight * pairs[..., i] for i, weight in enumerate(_BRIGHTNESS))
    brightness = red + green + blue
    contrast = np.abs(brightness[..., 0] - brightness[..., 1])
    chosen = np.argmax(np.minimum(contrast, _MIN_CONTRAST), axis=1)
    both = pairs[np.arange(len(pairs)), chosen]
    return both[:, 0], both[:, 1]


def _gradient(direction: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Returns backgrounds that change from one colour to another along a direction: float64 [N, 32, 32, 3]."""
    # Half a circle is enough, because the change of colour may have either sign.
    cosine, sine = (part[:, None, None] for part in _rotation(_between(direction, -1, 1)))
    across = np.arange(SIDE) / (SIDE - 1) - 0.5
    share = np.clip((across * cosine + across[:, None] * sine) / 1.2 + 0.5, 0, 1)[..., None]
    return start[:, None, None] + (end - start)[:, None, None] * share


@dataclasses.dataclass(frozen=True)
class GlyphExample:
    """An image of the glyphs."""

    split: str
    index: int
    num_classes: int

    @property
    def name(self) -> str:
        return f"glyphs/{self.split}[{self.index}]"

    def read(self) -> tuple[bytes, int]:
        """Returns the image as a PNG file and its label; see `sources.Example.read`."""
        (image,), (label,) = glyph_images(self.split, [self.index], self.num_classes)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        return file.getvalue(), int(label)


def source_name(split: str, num_classes: int) -> str:
    """Returns the name of a source of glyphs (`sources.Source`), which its token records keep."""
    return f"glyphs, {split}, {num_classes} classes"


class Glyphs:
    """The first images of a split, as a source of images; see `sources.Source`."""

    def __init__(self, split: str, num_images: int, num_classes: int = 10):
        """Checks the arguments, which are those of `glyph_images`, and a font file.

        Raises:
          UserError: see `glyph_images`.
        """
        self.class_names = class_names(num_classes)
        glyph_images(split, [0], num_classes)
        self.name = source_name(split, num_classes)
        self._split, self._num_images, self._num_classes = split, num_images, num_classes

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, index: int) -> GlyphExample:
        return GlyphExample(self._split, index, self._num_classes)
