"""Scores the samples of a model while it is trained or while its sampling options are tuned."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from etils import epath

from rar_jax.evaluation.digits import digits_scores
from rar_jax.evaluation.features import Extractor, extract_all, open_extractor
from rar_jax.evaluation.glyph_classifier import glyph_classifier
from rar_jax.evaluation.glyphs import glyph_scores
from rar_jax.evaluation.scoring import FRECHET_NAMES, Reference
from rar_jax.evaluation.statistics import Moments, frechet


class SampleScorer(Protocol):
    """Scores samples.

    Attributes:
      names: the names of the scores, a Frechet distance first.
    """

    names: tuple[str, ...]

    def prepare(self) -> None:
        """Loads the data that the scores need. Raises a `UserError` if that data cannot be used."""

    def score(self, images: Iterator[np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Scores samples, after `prepare`.

        Args:
          images: batches of uint8 [B, H, W, 3], N images in all.
          labels: int [N], the class of each image.

        Returns:
          name -> score, for all of `names`.
        """


class DigitsScorer:
    """Scores samples of the digits by an SVM and by their pixels, without a network trained elsewhere."""

    names = ("frechet_pixels", "svm_accuracy")

    def __init__(self, reference: str = "heldout"):
        """Compares samples with a split of the real digits."""
        self._reference = reference

    def prepare(self) -> None:
        """Does nothing, because the digits come with scikit-learn."""

    def score(self, images: Iterator[np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Scores samples; see `SampleScorer.score`."""
        scores = digits_scores(np.concatenate(list(images)), labels, self._reference)
        return {name: scores[name] for name in self.names}


class GlyphScorer:
    """Scores samples of the glyphs by a classifier and its features."""

    names = ("frechet_glyphs", "glyph_accuracy")

    def __init__(self, num_classes: int):
        self._num_classes = num_classes

    def prepare(self) -> None:
        """Trains the classifier, unless it is in the user's cache folder."""
        glyph_classifier()

    def score(self, images: Iterator[np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Scores samples; see `SampleScorer.score`."""
        scores = glyph_scores(np.concatenate(list(images)), labels, self._num_classes)
        return {name: scores[name] for name in self.names}


class ReferenceScorer:
    """Scores samples against a reference by features: a Frechet distance, and the score of classes if there is one.

    For the FID Inception network these are FID and Inception Score.

    Attributes:
      names: see `SampleScorer`.
      fingerprint: identifies the features.
    """

    def __init__(self, extractor: Extractor, reference: Reference, image_size: int):
        """Checks that samples and reference can be compared; computes nothing yet.

        Args:
          extractor: extracts the features.
          reference: compared with the samples. Images of a folder are cut to the side of the samples.
          image_size: side of the samples in pixels.

        Raises:
          UserError: samples and reference cannot be compared.
        """
        reference.cut(image_size)
        reference.check(extractor, (image_size, image_size))
        self._extractor, self._reference = extractor, reference
        self.fingerprint = extractor.fingerprint
        more = (extractor.class_score,) if extractor.class_score else ()
        self.names = (FRECHET_NAMES[extractor.name]["pool"], *more)

    def prepare(self) -> None:
        """Extracts the features of the reference. Raises a `UserError` if one of its images cannot be used."""
        self._reference.prepare(self._extractor, features=False)

    def score(self, images: Iterator[np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Scores samples; see `SampleScorer.score`."""
        moments, logits = Moments(), []
        for _, features in extract_all(self._extractor, images):
            moments.add(features.pool)
            logits.append(features.logits)
        scores = [frechet(moments.gaussian(), self._reference.gaussians["pool"])]
        if self._extractor.class_score:
            scores.append(self._extractor.score_classes(np.concatenate(logits), labels))
        return dict(zip(self.names, scores, strict=True))


def open_scorer(inception: str, reference: epath.PathLike, image_size: int) -> ReferenceScorer:
    """Returns a scorer of Inception features and a reference; see `features.open_extractor`, `scoring.Reference`."""
    return ReferenceScorer(open_extractor("inception", inception), Reference(reference, None), image_size)
