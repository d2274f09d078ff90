import numpy as np

from rar_jax.data.digits import digits_split
from rar_jax.evaluation import scoring
from rar_jax.evaluation.evaluate import draw_neighbours
from rar_jax.evaluation.features import PixelExtractor
from rar_jax.evaluation.image_sets import open_images


def test_beside_a_sample_is_the_image_that_its_features_are_nearest_to(tmp_path, monkeypatch):
    """Copies of images of the reference, of which every third or so is compared with."""
    monkeypatch.setattr(scoring, "_REFERENCE_FEATURES", 100)
    images, extractor = digits_split("heldout")[0], PixelExtractor()
    np.savez(tmp_path / "reference.npz", images)
    reference = scoring.Reference(tmp_path / "reference.npz", None)
    reference.prepare(extractor)
    assert len(reference.pool) == 100 and reference.places[-1] > 300
    np.savez(tmp_path / "copies.npz", images[reference.places])
    copies = open_images(tmp_path / "copies.npz")
    picture = draw_neighbours(scoring.summarise(copies, extractor, "copies", 100, show=8), reference)
    # Two rows of a sample and its five nearest in a line, with a gap between.
    rows = picture.images.reshape(-1, picture.columns, *images.shape[1:])
    for first in (0, 7):
        np.testing.assert_array_equal(rows[:, first], rows[:, first + 1])
    assert "(100 of its 360 images, spread over all; unnamed images" in picture.title
