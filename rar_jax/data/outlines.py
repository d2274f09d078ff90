"""Outlines of the digits and capital letters of the fonts that matplotlib ships, and the pixels that they cover.

fontTools reads the outlines, and NumPy fills them. Between the font files and the coverage there are only additions,
multiplications, divisions, square roots, comparisons and integer sums. IEEE 754 defines the result of each of these to
the last bit, so that a glyph covers the same pixels on every machine. Sines, matrix products and sums of floats are
avoided, because their last bits depend on the machine's libraries.
"""

import functools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from fontTools.pens.basePen import BasePen
from fontTools.ttLib import TTFont

from rar_jax.checkpoints.manifest import file_identity
from rar_jax.errors import UserError

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# The first 12 digits of the SHA-256 digest of each font file. matplotlib has a few more faces, which draw symbols or
# the same glyph for every character.
FACES = {
    "DejaVuSans": "3fdf69cabf06",
    "DejaVuSans-Bold": "b184b89e3c10",
    "DejaVuSans-Oblique": "ccdf74b350f1",
    "DejaVuSans-BoldOblique": "6edf02831601",
    "DejaVuSansMono": "602ec86b8948",
    "DejaVuSansMono-Bold": "baada9a5172f",
    "DejaVuSansMono-BoldOblique": "a69081c15c76",
    "DejaVuSerif": "107244956e99",
    "DejaVuSerif-Bold": "c3753f2ed6bc",
    "DejaVuSerif-Italic": "3e7994fbc54f",
    "DejaVuSerif-BoldItalic": "d93efec7a9d2",
    "STIXGeneral": "167378031e2d",
    "STIXGeneralItalic": "6cfcb333d22b",
    "STIXGeneralBolIta": "98788fd4ba48",
    "cmr10": "4dd9761b058c",
    "cmb10": "074497b50c43",
    "cmmi10": "3092965b8811",
    "cmtt10": "6211f09ae935",
    "DejaVuSansMono-Oblique": "28052813f7a7",
    "STIXGeneralBol": "e8533dc7083f",
    "cmss10": "7df91a83d05b",
    "cmti10": "f9f1f9f65430",
}
_MATPLOTLIB = "3.11.2"
# fontTools warns that some of these files have no plausible date.
logging.getLogger("fontTools").setLevel(logging.ERROR)
# A curve is replaced by this many straight pieces.
_PIECES = 4
# Coverage is counted at this many points along each side of a pixel.
_SAMPLES = 4
# A corner moves outwards by at most this many times the distance that an edge moves.
_LONGEST_MITER = 2.0


class Outline(NamedTuple):
    """The edges of closed polygons, in units of the height of the face's H, centred on their bounding box; y is up.

    Attributes:
      starts, ends: float64 [E, 2], the ends of the edges.
      outward_starts, outward_ends: float64 [E, 2], how far each end moves when all edges move outwards by 1.
    """

    starts: np.ndarray
    ends: np.ndarray
    outward_starts: np.ndarray
    outward_ends: np.ndarray


class _PolygonPen(BasePen):
    """Records what fontTools draws as polygons. Curves become straight pieces; TrueType has only quadratic ones.

    fontTools calls these methods by their names.
    """

    def __init__(self, glyphs):
        super().__init__(glyphs)
        self.polygons = []

    def _moveTo(self, point):  # noqa: N802
        self.polygons.append([point])

    def _lineTo(self, point):  # noqa: N802
        self.polygons[-1].append(point)

    def _qCurveToOne(self, control, end):  # noqa: N802
        start = self.polygons[-1][-1]
        for t in range(1, _PIECES + 1):
            first, second, third = (_PIECES - t) ** 2, 2 * t * (_PIECES - t), t**2
            point = [first * a + second * b + third * c for a, b, c in zip(start, control, end, strict=True)]
            self.polygons[-1].append([value / _PIECES**2 for value in point])


@functools.cache
def outlines(face: str) -> dict[str, Outline]:
    """Returns the outline of each of `CHARACTERS` in a face, one of `FACES`.

    Raises:
      UserError: the font file is missing or is not the one whose checksum is known.
    """
    font = TTFont(_font_file(face))
    glyphs, names = font.getGlyphSet(), font.getBestCmap()
    drawn = {}
    for character in CHARACTERS:
        pen = _PolygonPen(glyphs)
        glyphs[names[ord(character)]].draw(pen)
        drawn[character] = [np.array(polygon, np.float64) for polygon in pen.polygons]
    heights = [height for polygon in drawn["H"] for height in polygon[:, 1]]
    unit = max(heights) - min(heights)
    return {character: _outline(polygons, unit) for character, polygons in drawn.items()}


def _font_file(face: str) -> epath.Path:
    # Imported here because it takes a fifth of a second, and most commands draw no glyphs.
    import matplotlib

    file = epath.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    if not file.exists():
        raise UserError(f"matplotlib {matplotlib.__version__} has no font {face}: install matplotlib {_MATPLOTLIB}")
    found = file_identity(file)
    if found != FACES[face]:
        raise UserError(
            f"the font file {file} of matplotlib {matplotlib.__version__} has checksum {found}, not {FACES[face]}, so "
            f"its glyphs may look different: install matplotlib {_MATPLOTLIB}"
        )
    return file


def _outline(polygons: Sequence[np.ndarray], unit: float) -> Outline:
    every = np.concatenate(polygons)
    middle = (every.min(axis=0) + every.max(axis=0)) / 2
    polygons = [(polygon - middle) / unit for polygon in polygons]
    # TrueType runs around a filled area clockwise, so that the outside is to the left. Type 1 does the opposite.
    outside = 1.0 if sum(map(_area, polygons)) < 0 else -1.0
    starts, outward = zip(*(_with_outward(polygon, outside) for polygon in polygons), strict=True)
    ends, outward_ends = ([np.roll(part, -1, axis=0) for part in parts] for parts in (starts, outward))
    return Outline(*map(np.concatenate, (starts, ends, outward, outward_ends)))


def _area(polygon: np.ndarray) -> float:
    """Returns the signed area of a polygon, positive if it runs counterclockwise."""
    (x, y), (next_x, next_y) = polygon.T, np.roll(polygon, -1, axis=0).T
    return float(np.sum(x * next_y - next_x * y)) / 2


def _with_outward(polygon: np.ndarray, outside: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the vertices of a polygon, without repeated ones, and how far each moves when all edges move by 1."""
    polygon = polygon[(polygon != np.roll(polygon, -1, axis=0)).any(axis=1)]
    x, y = (np.roll(polygon, -1, axis=0) - polygon).T
    # `np.hypot` is not rounded in the same way everywhere, as the square root is.
    length = np.sqrt(x * x + y * y)
    normal = np.stack([-y / length, x / length], axis=1) * outside
    before = np.roll(normal, 1, axis=0)
    cosine = normal[:, 0] * before[:, 0] + normal[:, 1] * before[:, 1]
    shortest = 2 / (_LONGEST_MITER * _LONGEST_MITER)
    return polygon, (normal + before) / np.maximum(1 + cosine, shortest)[:, None]


def coverage(outline: Outline, weight: float, matrix: Sequence[float], shift: Sequence[float], side: int) -> np.ndarray:
    """Returns how much of each pixel a glyph covers, by the nonzero winding rule at 4 x 4 points in the pixel.

    Args:
      outline: the glyph.
      weight: how far its edges move outwards first, in its own units.
      matrix: (a, b, c, d), which map (x, y), y up, to pixels (a x + b y, c x + d y), y down.
      shift: (x, y) in pixels, the place of the glyph's centre.
      side: side of the picture in pixels.

    Returns:
      float64 [side, side], multiples of 1/16.
    """
    lines = side * _SAMPLES
    x0, y0 = _placed(outline.starts, outline.outward_starts, weight, matrix, shift)
    x1, y1 = _placed(outline.ends, outline.outward_ends, weight, matrix, shift)
    # Each horizontal line of points meets the edges that begin on one side of it and end on the other.
    heights = np.arange(lines) + 0.5
    starts_above = y0[:, None] <= heights
    edge, line = np.nonzero(starts_above != (y1[:, None] <= heights))
    x = x0[edge] + (heights[line] - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    first = np.clip(np.ceil(x - 0.5), 0, lines).astype(np.int64)
    turns = np.where(starts_above[edge, line], 1.0, -1.0)
    # The polygons are closed, so the turns of a line add up to zero and one sum can run through all lines.
    changes = np.bincount(line * (lines + 1) + first, weights=turns, minlength=lines * (lines + 1))
    inside = (np.cumsum(changes) != 0).reshape(lines, lines + 1)[:, :lines]
    counts = inside.reshape(side, _SAMPLES, side, _SAMPLES).sum(axis=(1, 3))
    return counts / (_SAMPLES * _SAMPLES)


def _placed(points, outward, weight, matrix, shift) -> tuple[np.ndarray, np.ndarray]:
    """Moves, maps and shifts points. Returns their x and y in units of the distance between samples."""
    a, b, c, d = matrix
    x, y = (points + weight * outward).T
    return (a * x + b * y + shift[0]) * _SAMPLES, (c * x + d * y + shift[1]) * _SAMPLES
