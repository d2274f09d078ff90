"""Scores of samples of the digits, by two measures that need no network trained elsewhere."""

import functools

import numpy as np
from sklearn.svm import SVC

from rar_jax.data.digits import SPLITS, DigitsTokenizer, digits_split
from rar_jax.evaluation.statistics import frechet_distance

# The setting of scikit-learn's own example on this data set.
_GAMMA = 0.001


@functools.cache
def _svm() -> SVC:
    """Returns an SVM trained on the real training digits; it is trained once per process."""
    images, labels = digits_split("train")
    return SVC(gamma=_GAMMA).fit(DigitsTokenizer().encode(images), labels)


def svm_accuracy(grey_levels: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of digits that an SVM trained on the real training digits recognises as their class.

    Args:
      grey_levels: int [N, 64], 0..16, which are the codes of the digits.
      labels: int [N], their classes.
    """
    return float(_svm().score(grey_levels, labels))


def digits_scores(images: np.ndarray, labels: np.ndarray, reference: str = "heldout") -> dict[str, float]:
    """Scores samples of the digits.

    Args:
      images: uint8 [N, 8, 8, 3], N at least 2.
      labels: int [N], the class each was sampled for.
      reference: the split of the real digits that the samples are compared with.

    Returns:
      svm_accuracy: the share of samples that an SVM trained on the real training digits recognises as their class.
      frechet_pixels: the Frechet distance to the real digits in pixel statistics (grey levels 0..16).
    """
    tokenizer = DigitsTokenizer()
    samples, real = (tokenizer.encode(x) for x in (images, digits_split(reference)[0]))
    return {
        "svm_accuracy": svm_accuracy(samples, labels),
        "frechet_pixels": frechet_distance(samples, real),
    }


def digits_report(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores samples against the real digits, and scores real digits in the same way for comparison.

    Args:
      images, labels: see `digits_scores`.

    Returns:
      svm_accuracy_samples, svm_accuracy_heldout: the accuracy on the samples and on the held-out digits.
      frechet_samples, frechet_train: the distance of the samples, and of the real training digits, to the held-out
        digits.
    """
    samples, train, heldout = (digits_scores(*x) for x in ((images, labels), *map(digits_split, SPLITS)))
    return {
        "svm_accuracy_samples": samples["svm_accuracy"],
        "svm_accuracy_heldout": heldout["svm_accuracy"],
        "frechet_samples": samples["frechet_pixels"],
        "frechet_train": train["frechet_pixels"],
    }
