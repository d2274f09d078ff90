"""Scores of samples that come from a model at hand, in training or while its sampling is tuned: few, and often."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from etils import epath

from rar_jax.evaluation.digits import digits_scores
from rar_jax.evaluation.features import Extractor, extract_all, open_extractor
from rar_jax.evaluation.scoring import FRECHET_NAMES, Reference
from rar_jax.evaluation.statistics import Moments, frechet, inception_score


class SampleScorer(Protocol):
    """Scores samples."""

    def score(self, images: Iterator[np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Batches of uint8 [B, H, W, 3] and the class of each image, int [N] -> scores, a Frechet distance first."""


class DigitsScorer:
    """Of the digits: by an SVM and by their pixels, without a network trained elsewhere."""

    def score(self, images: Iterator[np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """As `SampleScorer.score`."""
        scores = digits_scores(np.concatenate(list(images)), labels)
        return {name: scores[name] for name in ("frechet_pixels", "svm_accuracy")}


class ReferenceScorer:
    """By features, against a reference: FID and Inception Score, or of pixels the Frechet distance.

    Attributes:
      fingerprint: of the features.
    """

    def __init__(self, extractor: Extractor, reference: Reference, image_size: int):
        """Prepares nothing yet; `prepare` does.

        Args:
          extractor: of the features.
          reference: to compare with; pictures of a folder are cut to the side of the samples.
          image_size: side of the samples.

        Raises:
          UserError: these cannot be compared.
        """
        reference.cut(image_size)
        reference.check(extractor, (image_size, image_size))
        self._extractor, self._reference = extractor, reference
        self.fingerprint = extractor.fingerprint
        self._name = FRECHET_NAMES[extractor.name]["pool"]

    def prepare(self) -> None:
        """Extracts what the reference does not store. Raises UserError if one of its images cannot be used."""
        self._reference.prepare(self._extractor, features=False)

    def score(self, images: Iterator[np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """As `SampleScorer.score`, after `prepare`."""
        moments, logits = Moments(), []
        for _, features in extract_all(self._extractor, images):
            moments.add(features.pool)
            logits.append(features.logits)
        scores = {self._name: frechet(moments.gaussian(), self._reference.gaussians["pool"])}
        if logits[0] is not None:
            scores["inception_score"] = inception_score(np.concatenate(logits))
        return scores


def open_scorer(features: str, inception: str, reference: epath.PathLike, image_size: int) -> ReferenceScorer:
    """A scorer by names; see `features.open_extractor` and `scoring.Reference`."""
    return ReferenceScorer(open_extractor(features, inception), Reference(reference, None), image_size)
