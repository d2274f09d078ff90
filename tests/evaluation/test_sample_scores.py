import numpy as np
import pytest

from rar_jax.data.digits import digits_split
from rar_jax.errors import UserError
from rar_jax.evaluation.features import PixelExtractor
from rar_jax.evaluation.sample_scores import ReferenceScorer
from rar_jax.evaluation.scoring import Reference
from rar_jax.evaluation.statistics import frechet_distance
from rar_jax.images.files import write_png


def test_a_reference_of_mixed_sizes_is_cut_to_the_size_of_the_samples(tmp_path):
    """The images of ImageNet have mixed sizes, too."""
    train, heldout = (digits_split(split)[0] for split in ("train", "heldout"))
    for i, image in enumerate(train[:40]):
        # The centre crop removes these margins.
        write_png(tmp_path / f"{i:02d}.png", np.pad(image, ((0, 0), (i % 3, i % 3), (0, 0))))
    scorer = ReferenceScorer(PixelExtractor(), Reference(tmp_path, None), 8)
    scorer.prepare()
    features = [PixelExtractor().extract(images).pool for images in (heldout, train[:40])]
    scores = scorer.score(iter(np.array_split(heldout, 3)), np.zeros(len(heldout), int))
    assert scores == {"frechet_pixels": pytest.approx(frechet_distance(*features), rel=1e-9)}


def test_prepare_refuses_an_unreadable_reference_image(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="has a single image, which has no covariance"):
        ReferenceScorer(PixelExtractor(), Reference(tmp_path, None), 8)
    (tmp_path / "b.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"b\.png: it is not an image"):
        ReferenceScorer(PixelExtractor(), Reference(tmp_path, None), 8).prepare()


def test_images_of_an_npz_are_not_cut(tmp_path):
    np.savez(tmp_path / "a.npz", digits_split("train")[0])
    with pytest.raises(UserError, match="has images of 8 x 8 pixels, but the samples are 4 x 4"):
        ReferenceScorer(PixelExtractor(), Reference(tmp_path / "a.npz", None), 4)
