import numpy as np
import pytest

from rar_jax.data.digits import digits_split
from rar_jax.errors import UserError
from rar_jax.evaluation import scoring
from rar_jax.evaluation.evaluate import draw_neighbours, evaluate_samples, save_statistics
from rar_jax.evaluation.features import GlyphExtractor, PixelExtractor
from rar_jax.evaluation.image_sets import open_images
from rar_jax.evaluation.report import read_report
from rar_jax.images.files import write_png


def test_each_sample_is_shown_beside_its_nearest_reference_image(tmp_path, monkeypatch):
    """The samples are copies of reference images, and about a third of the reference is used for comparison."""
    monkeypatch.setattr(scoring, "_REFERENCE_FEATURES", 100)
    images, extractor = digits_split("heldout")[0], PixelExtractor()
    np.savez(tmp_path / "reference.npz", images)
    reference = scoring.Reference(tmp_path / "reference.npz", None)
    reference.prepare(extractor)
    assert len(reference.pool) == 100 and reference.places[-1] > 300
    np.savez(tmp_path / "copies.npz", images[reference.places])
    copies = open_images(tmp_path / "copies.npz")
    grid = draw_neighbours(scoring.summarise(copies, extractor, "copies", 100, show=8), reference)
    # A line of the grid has two samples, each with its five nearest images, and a gap between them.
    rows = grid.images.reshape(-1, grid.columns, *images.shape[1:])
    for first in (0, 7):
        np.testing.assert_array_equal(rows[:, first], rows[:, first + 1])
    assert "(100 of its 360 images, spread over all; unnamed images" in grid.title


def test_what_cannot_be_scored_is_found_before_the_samples_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(PixelExtractor, "extract", None)
    np.savez(tmp_path / "large.npz", np.zeros((2, 65, 64, 3), np.uint8))
    with pytest.raises(UserError, match="images of at most 4096 pixels"):
        save_statistics(open_images(tmp_path / "large.npz"), PixelExtractor(), tmp_path / "statistics.npz")
    for name in "ab":
        (tmp_path / "folder").mkdir(exist_ok=True)
        write_png(tmp_path / "folder" / f"{name}.png", np.zeros((8, 8 if name == "a" else 9, 3), np.uint8))
    np.savez(tmp_path / "samples.npz", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="cut all to one size with --image_size"):
        reference = scoring.Reference(tmp_path / "folder", None)
        evaluate_samples(open_images(tmp_path / "samples.npz"), reference, PixelExtractor(), tmp_path / "out")


def test_labels_that_are_no_glyphs_are_found_before_the_samples_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(GlyphExtractor, "extract", None)
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((2, 32, 32, 3), np.uint8), arr_1=np.array([0, 99]))
    samples, reference = open_images(tmp_path / "samples.npz"), scoring.Reference(tmp_path / "samples.npz", None)
    with pytest.raises(UserError, match="the labels go up to 99, but the glyphs have the classes 0 to 35"):
        evaluate_samples(samples, reference, GlyphExtractor(), tmp_path / "out")


def test_scores_are_kept_if_the_statistics_cannot_be_written(tmp_path):
    np.savez(tmp_path / "digits.npz", digits_split("heldout")[0])
    samples, reference = open_images(tmp_path / "digits.npz"), scoring.Reference(tmp_path / "digits.npz", None)
    unwritable = tmp_path / "digits.npz" / "statistics.npz"
    with pytest.raises(OSError):
        evaluate_samples(samples, reference, PixelExtractor(), tmp_path / "out", statistics=unwritable)
    assert read_report(tmp_path / "out")["scores"]["frechet_pixels"] == pytest.approx(0, abs=1e-6)
