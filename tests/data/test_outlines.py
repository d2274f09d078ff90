import numpy as np
import pytest

from rar_jax.data import outlines
from rar_jax.data.outlines import CHARACTERS, FACES, coverage
from rar_jax.errors import UserError

SQUARE = np.array([(0, 0), (0, 2), (2, 2), (2, 0), (0, 0)], float)
HOLE = np.array([(0.5, 0.5), (1.5, 0.5), (1.5, 1.5), (0.5, 1.5)], float)


def winding_coverage(outline, weight, matrix, shift, side):
    """Counts the points of each pixel around which the edges turn, by the angles under which a point sees them."""
    (a, b), (c, d) = np.reshape(matrix, (2, 2))
    ends = []
    for points, outward in ((outline.starts, outline.outward_starts), (outline.ends, outline.outward_ends)):
        x, y = (points + weight * outward).T
        ends.append((a * x + b * y + shift[0]) + 1j * (c * x + d * y + shift[1]))
    places = (np.arange(4 * side) + 0.5) / 4
    points = (places + 1j * places[:, None])[..., None]
    turns = np.angle((ends[1] - points) / (ends[0] - points)).sum(axis=-1) / (2 * np.pi)
    inside = np.abs(turns) > 0.5
    return inside.reshape(side, 4, side, 4).mean(axis=(1, 3))


@pytest.mark.parametrize("face, character", [("DejaVuSerif", "B"), ("cmtt10", "Q"), ("STIXGeneral", "4")])
def test_coverage_is_that_of_winding_numbers(face, character):
    glyph = outlines.outlines(face)[character]
    placement = (0.017, (9.3, 2.1, 1.7, -11.2), (8.37, 7.91), 16)
    covered = coverage(glyph, *placement)
    assert 0.1 < covered.mean() < 0.6
    np.testing.assert_array_equal(covered, winding_coverage(glyph, *placement))


def test_edges_that_leave_the_picture_are_cut_off():
    glyph = outlines._outline([SQUARE], 1.0)
    assert (coverage(glyph, 0.0, (100, 0, 0, -100), (3.0, 5.0), 8) == 1).all()
    corner = coverage(glyph, 0.0, (4, 0, 0, -4), (8.0, 0.0), 8)
    assert corner[:4, 4:].min() == 1 and corner.sum() == 16


@pytest.mark.parametrize("turn", [1, -1])
def test_weight_moves_every_edge_outwards(turn):
    """Also those of a hole, and in fonts that run around a glyph in either direction."""
    glyph = outlines._outline([SQUARE[::turn], HOLE[::turn]], 2.0)
    points = glyph.starts + 0.125 * glyph.outward_starts
    assert len(points) == 8
    np.testing.assert_allclose(np.abs(points[:4]), 0.5 + 0.125)
    np.testing.assert_allclose(np.abs(points[4:]), 0.25 - 0.125)


def test_sharp_corners_move_no_further_than_the_limit():
    needle = np.array([(0, 0), (0.001, 10), (0.002, 0)])
    outward = outlines._outline([needle], 1.0).outward_starts
    assert np.linalg.norm(outward[1]) <= outlines._LONGEST_MITER
    assert outward[1, 1] > 0


def test_every_face_has_every_character_at_one_size():
    assert len(FACES) == 22
    for face in FACES:
        glyphs = outlines.outlines(face)
        assert list(glyphs) == list(CHARACTERS)
        assert np.ptp(glyphs["H"].starts[:, 1]) == pytest.approx(1)
        for glyph in glyphs.values():
            np.testing.assert_allclose(glyph.starts.min(axis=0), -glyph.starts.max(axis=0))
            assert 0.5 < np.ptp(glyph.starts[:, 1]) < 1.4


def test_another_font_file_is_refused(monkeypatch):
    monkeypatch.setitem(FACES, "cmr10", "0123456789ab")
    with pytest.raises(
        UserError, match=r"cmr10\.ttf .* checksum 4dd9761b058c, not 0123456789ab.* install matplotlib 3"
    ):
        outlines.outlines.__wrapped__("cmr10")
