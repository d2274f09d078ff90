import numpy as np

from rar_jax.data.digits import digits_split
from rar_jax.evaluation import scoring
from rar_jax.evaluation.evaluate import draw_neighbours
from rar_jax.evaluation.features import PixelExtractor
from rar_jax.evaluation.image_sets import open_images


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
