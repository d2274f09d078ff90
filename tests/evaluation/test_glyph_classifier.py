import dataclasses

import jax
import numpy as np
import pytest

from rar_jax.data.glyphs import NUM_HELDOUT, glyph_images
from rar_jax.errors import UserError
from rar_jax.evaluation import glyph_classifier as module
from rar_jax.evaluation.glyph_classifier import GlyphClassifier, Recipe, glyph_classifier, recognised


@pytest.fixture
def small_recipe(monkeypatch, tmp_path):
    """A recipe that takes seconds, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = Recipe(num_images=720, epochs=8, batch_size=36, learning_rate=5e-3, width=8, num_features=32)
    monkeypatch.setattr(module, "RECIPE", recipe)
    glyph_classifier.cache_clear()
    yield tmp_path / "rar_jax" / "glyph_classifier"
    glyph_classifier.cache_clear()


def test_it_learns_and_is_trained_once(small_recipe, monkeypatch):
    images, labels = glyph_images("train", np.arange(360), 36)
    features, logits = glyph_classifier().outputs(images)
    assert features.shape == (360, 32) and logits.shape == (360, 36)
    assert np.mean(logits.argmax(axis=1) == labels) > 0.5
    (file,) = small_recipe.iterdir()
    monkeypatch.setattr(module, "_train", lambda network, params: params)
    glyph_classifier.cache_clear()
    np.testing.assert_array_equal(glyph_classifier().outputs(images)[1], logits)
    # Another recipe is another classifier.
    monkeypatch.setattr(module, "RECIPE", dataclasses.replace(module.RECIPE, epochs=9))
    glyph_classifier.cache_clear()
    assert (glyph_classifier().outputs(images)[1] != logits).any()
    assert {path.name for path in small_recipe.iterdir()} > {file.name}


@pytest.fixture(scope="module")
def untrained():
    network = module._Network(width=2, num_features=4)
    return GlyphClassifier(network, network.init(jax.random.key(1), np.zeros((1, 32, 32, 3), np.uint8))["params"])


def test_digits_are_recognised_among_digits():
    """A logit of a letter is the largest everywhere, and that of the digit 1 the next."""
    logits = np.tile(np.eye(36)[1] + 2 * np.eye(36)[20], (4, 1))
    assert recognised(logits, np.array([1, 1, 1, 0])) == 0.75
    assert recognised(logits, np.array([1, 1, 20, 0])) == 0.25
    assert recognised(logits, np.array([1, 1, 1, 0]), num_classes=36) == 0
    with pytest.raises(UserError, match="the labels go up to 36, but the glyphs have the classes 0 to 35"):
        recognised(logits, np.array([1, 1, 1, 36]))


def test_images_of_another_size_are_refused(untrained):
    with pytest.raises(UserError, match="reads images of 32 x 32 pixels, not"):
        untrained.outputs(np.zeros((2, 8, 8, 3), np.uint8))


@pytest.mark.long
def test_it_reads_real_glyphs(monkeypatch, tmp_path):
    """97.5% of all 36 classes, also of faces that it has not seen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    glyph_classifier.cache_clear()
    for split in ("heldout", "unseen_faces"):
        images, labels = glyph_images(split, np.arange(NUM_HELDOUT), 36)
        assert np.mean(glyph_classifier().outputs(images)[1].argmax(axis=1) == labels) >= 0.975
    glyph_classifier.cache_clear()
