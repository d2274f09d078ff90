import jax
import numpy as np
import pytest
from conftest import DATA

from rar_jax.checkpoints.pytorch import inception_from_pytorch
from rar_jax.data.digits import DigitsTokenizer, digits_split
from rar_jax.errors import UserError
from rar_jax.evaluation import features as features_module
from rar_jax.evaluation import glyph_classifier
from rar_jax.evaluation.features import InceptionExtractor, PixelExtractor, extract_all, open_extractor
from rar_jax.parallel.mesh import make_mesh


def test_inception_is_the_same_on_eight_devices_and_one(inception_tensors, monkeypatch):
    """Features equal the published ones, for any division into batches and any number of devices."""
    golden = np.load(DATA / "inception.npz")
    images = np.concatenate([golden["images_0"], golden["images_0"][::-1], golden["images_0"][:1]])
    order = [0, 1, 1, 0, 0]
    assert jax.device_count() == 8
    model, params = inception_from_pytorch(inception_tensors)
    monkeypatch.setattr(features_module, "_IMAGES_A_DEVICE", {"cpu": 1})
    eight = InceptionExtractor(model, params)
    monkeypatch.setattr(features_module, "_IMAGES_A_DEVICE", {"cpu": 2})
    monkeypatch.setattr(features_module, "local_mesh", lambda: make_mesh((1, 1), jax.devices()[:1]))
    one = InceptionExtractor(model, params)
    assert (eight.batch_size, one.batch_size) == (8, 2)
    assert eight.fingerprint == one.fingerprint and len(eight._params["fc"]["kernel"].sharding.device_set) == 8
    for extractor, batches in ((eight, [images]), (one, [images[:1], images[1:4], images[4:]])):
        found = list(extract_all(extractor, batches))
        sizes = [len(batch) for batch, _ in found]
        assert sizes == [len(features.pool) for _, features in found]
        assert set(sizes[:-1]) <= {extractor.batch_size}
        for name, field in (
            ("2048", "pool"),
            ("spatial_mixed_6_conv_first7", "spatial"),
            ("logits_unbiased", "logits"),
        ):
            array = np.concatenate([getattr(features, field) for _, features in found])
            expected = golden[f"features_0/{name}"][order]
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name)
        assert found[0][1].spatial[0].size == extractor.num_spatial


def test_pixels_are_grey_levels():
    extractor = PixelExtractor()
    images = np.zeros((2, 2, 2, 3), np.uint8)
    images[1] = 255
    images[1, 0, 1] = [255, 0, 0]
    features = extractor.extract(images)
    np.testing.assert_array_equal(features.pool, [[0, 0, 0, 0], [16, 5, 16, 16]])
    digits = digits_split("heldout")[0]
    np.testing.assert_array_equal(extractor.extract(digits).pool, DigitsTokenizer().encode(digits))
    assert features.spatial is None and features.logits is None
    assert extractor.num_features((8, 8)) == 64
    with pytest.raises(UserError, match="images of at most 4096 pixels, not 128 x 64"):
        extractor.num_features((64, 128))


def test_features_of_glyphs_are_those_of_their_classifier(monkeypatch):
    class Classifier:
        def outputs(self, images):
            return images.mean(axis=(1, 2)), np.eye(36)[images[:, 0, 0, 0]]

    monkeypatch.setattr(glyph_classifier, "glyph_classifier", Classifier)
    extractor = open_extractor("glyphs", None)
    images = np.zeros((4, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = [7, 8, 30, 5]
    features = extractor.extract(images)
    np.testing.assert_array_equal(features.pool, images.mean(axis=(1, 2)))
    assert features.spatial is None and extractor.num_features((32, 32)) == glyph_classifier.RECIPE.num_features
    # Among the ten digits, the third image counts as a 0.
    assert extractor.score_classes(features.logits, np.array([7, 8, 0, 6])) == 3 / 4
    assert extractor.score_classes(features.logits, np.array([7, 8, 0, 30])) == 2 / 4
    assert extractor.score_classes(features.logits, None) is None
    with pytest.raises(UserError, match="--features=glyphs needs images of 32 x 32 pixels, not 64 x 32"):
        extractor.num_features((32, 64))


def test_extractors_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match="needs the weights of the FID Inception network: name them with --inception"):
        open_extractor("inception", None)
    with pytest.raises(UserError, match="--inception=w and --features=pixels exclude each other"):
        open_extractor("pixels", "w")
    with pytest.raises(UserError, match="no weights in"):
        open_extractor("inception", tmp_path / "w.pth")
