"""Distances between sets of features, and the Inception Score: float64 on the host, whatever the features are."""

import dataclasses
import functools

import numpy as np
import scipy.linalg
import scipy.special

from rar_jax.errors import UserError

# ADM's.
SPLIT_SIZE = 5000
# Features counted in at once.
_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """The normal distribution that a Frechet distance stands on.

    Attributes:
      mu: float64 [F].
      sigma: float64 [F, F], symmetric; with ddof 1, as in the ADM evaluator.
    """

    mu: np.ndarray
    sigma: np.ndarray

    @functools.cached_property
    def root(self) -> np.ndarray:
        """float64 [F, rank], a factor of the covariance: root @ root.T is sigma.

        Directions whose variance cannot be told from 0 in float64 are left out, so that the rounding of a singular
        covariance adds nothing.
        """
        values, vectors = scipy.linalg.eigh(self.sigma)
        kept = values > values[-1].clip(0) * len(values) * np.finfo(np.float64).eps
        return vectors[:, kept] * np.sqrt(values[kept])

    @property
    def rank(self) -> int:
        """Of the covariance: below F it is singular, as with no more images than features."""
        return self.root.shape[1]


class Moments:
    """Mean and covariance of features that come in batches; holds two [F, F] matrices and few features.

    Attributes:
      count: features so far.
    """

    def __init__(self):
        self.count = 0
        self._waiting = []
        self._num_waiting = 0
        self._shift = self._sum = self._products = None

    def add(self, features: np.ndarray) -> None:
        """Counts features in, float [B, ...], each flattened to F numbers."""
        self.count += len(features)
        self._num_waiting += len(features)
        self._waiting.append(np.asarray(features, np.float64).reshape(len(features), -1))
        # A product of few rows would mostly move the [F, F] matrix through memory.
        if self._num_waiting >= _ROWS:
            self._count_in()

    def _count_in(self) -> None:
        if not self._waiting:
            return
        features = np.concatenate(self._waiting)
        self._waiting, self._num_waiting = [], 0
        if self._shift is None:
            # Sums about a point amid the features: about 0, a large mean would cancel the digits of a small spread.
            self._shift = features.mean(axis=0)
            self._sum = np.zeros_like(self._shift)
            self._products = np.zeros((features.shape[1],) * 2)
        features -= self._shift
        self._sum += features.sum(axis=0)
        self._products += features.T @ features

    def gaussian(self) -> Gaussian:
        """The distribution of what was counted in.

        Raises:
          UserError: there were fewer than two features, which have no covariance.
        """
        if self.count < 2:
            raise UserError(f"{self.count} image(s) have no covariance: give at least 2")
        self._count_in()
        mean = self._sum / self.count
        sigma = (self._products - self.count * np.outer(mean, mean)) / (self.count - 1)
        return Gaussian(self._shift + mean, sigma)


def gaussian(features: np.ndarray) -> Gaussian:
    """The distribution fitted to features, float [N, ...], N at least 2."""
    moments = Moments()
    moments.add(features)
    return moments.gaussian()


def frechet(a: Gaussian, b: Gaussian) -> float:
    """FID of two Gaussians (Heusel et al., 2017): |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    With S = R R^T, the trace of the root is the sum of the singular values of R_a^T R_b: no square root of a number
    that rounding may have made negative, and singular covariances do no harm.

    Returns:
      In squared units of the features.

    Raises:
      UserError: they are of different numbers of features.
    """
    if a.mu.shape != b.mu.shape:
        raise UserError(f"features of {len(a.mu)} and of {len(b.mu)} numbers cannot be compared")
    cross = scipy.linalg.svdvals(a.root.T @ b.root).sum()
    shift = a.mu - b.mu
    return float(shift @ shift + np.trace(a.sigma) + np.trace(b.sigma) - 2 * cross)


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """`frechet` of the distributions fitted to features, float [N, F] and [M, F], N and M at least 2."""
    return frechet(gaussian(features_a), gaussian(features_b))


def inception_score(logits: np.ndarray, split_size: int = SPLIT_SIZE) -> float:
    """Inception Score (Salimans et al., 2016): the mean over splits of exp(E KL(p(y|x) || p(y))).

    Splits are consecutive, and a short last one counts as one, as in the ADM evaluator: the order of images matters.

    Args:
      logits: float [N, classes]; of the FID Inception network, those without bias.
      split_size: images a split.

    Returns:
      From 1 to the number of classes.
    """
    scores = []
    for start in range(0, len(logits), split_size):
        probabilities = scipy.special.softmax(np.asarray(logits[start : start + split_size], np.float64), axis=1)
        divergence = scipy.special.rel_entr(probabilities, probabilities.mean(axis=0))
        scores.append(np.exp(divergence.sum(axis=1).mean()))
    return float(np.mean(scores))
