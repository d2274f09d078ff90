import numpy as np
import pytest

from rar_jax.data.glyphs import NUM_HELDOUT, glyph_images
from rar_jax.evaluation import glyphs
from rar_jax.evaluation.glyphs import distance_to_training, glyph_scores
from rar_jax.evaluation.sample_scores import GlyphScorer
from rar_jax.evaluation.statistics import frechet_distance


class MeanColourClassifier:
    """Its features are mean colours, and it reads the label that is hidden in the first pixel."""

    def outputs(self, images):
        return images.mean(axis=(1, 2)), np.eye(256)[images[:, 0, 0, 0]][:, :36]


@pytest.fixture
def easy_classifier(monkeypatch):
    monkeypatch.setattr(glyphs, "glyph_classifier", MeanColourClassifier)
    glyphs._heldout.cache_clear()
    yield
    glyphs._heldout.cache_clear()


def test_scores_of_samples(easy_classifier):
    images, labels = glyph_images("train", np.arange(40))
    images[:, 0, 0, 0] = labels
    images[:10, 0, 0, 0] = 35
    images[10:15, 0, 0, 0] = (labels[10:15] + 1) % 10
    scores = glyph_scores(images, labels, 10)
    # Logits of the other classes are equal, and the first of them wins: the zero among the first ten images.
    assert scores["glyph_accuracy"] == (25 + 1) / 40
    heldout = glyph_images("heldout", np.arange(NUM_HELDOUT))[0]
    expected = frechet_distance(*(MeanColourClassifier().outputs(x)[0] for x in (images, heldout)))
    assert scores["frechet_glyphs"] == pytest.approx(expected, rel=1e-6)
    scorer = GlyphScorer(10)
    assert scorer.score(iter(np.split(images, 4)), labels) == {name: scores[name] for name in scorer.names}


def test_a_copy_is_at_no_distance_from_the_training_images():
    images = np.concatenate([glyph_images("train", [3, 39])[0], glyph_images("heldout", [5])[0]])
    images[1, :16] ^= 1
    distances = distance_to_training(images, 40, 10)
    assert distances[0] == 0 and distances[1] == pytest.approx(0.5**0.5)
    training = glyph_images("train", np.arange(40))[0].astype(float)
    assert distances[2] == pytest.approx(np.sqrt(((training - images[2]) ** 2).mean(axis=(1, 2, 3)).min()))
    assert distances[2] > 20
