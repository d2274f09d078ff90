"""Scores of samples of the glyphs, by a classifier trained on the real ones."""

import functools

import numpy as np

from rar_jax.data.glyphs import NUM_HELDOUT, glyph_images
from rar_jax.evaluation.glyph_classifier import glyph_classifier, recognised
from rar_jax.evaluation.neighbours import distance_to_nearest
from rar_jax.evaluation.statistics import Gaussian, frechet, gaussian


def glyph_scores(images: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """Scores samples of the glyphs.

    Args:
      images: uint8 [N, 32, 32, 3], N at least 2.
      labels: int [N], the class each was sampled for.
      num_classes: number of classes of the model, 10 or 36.

    Returns:
      frechet_glyphs: the Frechet distance of the classifier's features to those of the held-out glyphs of these
        classes (`NUM_HELDOUT` images, new draws of the training faces).
      glyph_accuracy: the share of images that the classifier recognises as their class among the model's classes.
    """
    features, logits = glyph_classifier().outputs(images)
    return {
        "frechet_glyphs": frechet(gaussian(features), _heldout(num_classes)),
        "glyph_accuracy": recognised(logits, labels, num_classes),
    }


def glyph_report(
    images: np.ndarray, labels: np.ndarray, reconstructions: np.ndarray, num_training: int, num_classes: int
) -> dict[str, float]:
    """Scores samples of the glyphs, and held-out glyphs in the same way for comparison.

    Args:
      images, labels, num_classes: see `glyph_scores`.
      reconstructions: the first held-out glyphs, encoded and decoded by the tokenizer: uint8 [M, 32, 32, 3].
      num_training: number of training images.

    Returns:
      glyph_accuracy_samples, glyph_accuracy_heldout: the accuracy on the samples and on real held-out glyphs.
      frechet_samples, frechet_reconstructions: the Frechet distance of the samples, and of the reconstructions, to the
        held-out glyphs.
      nearest_samples, nearest_reconstructions: the median distance of the samples, and of the reconstructions, to the
        nearest training image (`distance_to_training`). Samples that are copies are nearer than reconstructions.
    """
    real, real_labels = glyph_images("heldout", np.arange(len(reconstructions)), num_classes)
    samples, reconstructed = (
        glyph_scores(*each, num_classes) for each in ((images, labels), (reconstructions, real_labels))
    )
    _, logits = glyph_classifier().outputs(real)
    # Searched together, because the training images are drawn for each search.
    distances = distance_to_training(np.concatenate([images, reconstructions]), num_training, num_classes)
    return {
        "glyph_accuracy_samples": samples["glyph_accuracy"],
        "glyph_accuracy_heldout": recognised(logits, real_labels, num_classes),
        "frechet_samples": samples["frechet_glyphs"],
        "frechet_reconstructions": reconstructed["frechet_glyphs"],
        "nearest_samples": float(np.median(distances[: len(images)])),
        "nearest_reconstructions": float(np.median(distances[len(images) :])),
    }


@functools.cache
def _heldout(num_classes: int) -> Gaussian:
    images, _ = glyph_images("heldout", np.arange(NUM_HELDOUT), num_classes)
    return gaussian(glyph_classifier().outputs(images)[0])


def distance_to_training(images: np.ndarray, num_images: int, num_classes: int) -> np.ndarray:
    """Returns how far each image is from the nearest training image, which shows whether samples are copies.

    Compare with held-out images that the same tokenizer encoded and decoded: copies are nearer than these.

    Args:
      images: uint8 [N, 32, 32, 3].
      num_images, num_classes: those of the training set.

    Returns:
      float64 [N], the root of the mean squared difference of pixels, in grey levels.
    """
    training, _ = glyph_images("train", np.arange(num_images), num_classes)
    return distance_to_nearest(images, training)
