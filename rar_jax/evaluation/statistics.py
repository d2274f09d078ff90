"""The Frechet distance between sets of features, and the Inception Score, computed in float64 on the host."""

import dataclasses
import functools

import numpy as np
import scipy.linalg
import scipy.special

from rar_jax.errors import UserError

# Images per split of the Inception Score, as in the ADM evaluator.
SPLIT_SIZE = 5000
# Number of features that are added to the sums at once.
_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """The normal distribution of a set of features, for the Frechet distance.

    Attributes:
      mu: float64 [F], the mean.
      sigma: float64 [F, F], the covariance, with ddof 1 as in the ADM evaluator.
    """

    mu: np.ndarray
    sigma: np.ndarray

    @functools.cached_property
    def root(self) -> np.ndarray:
        """A factor of the covariance, float64 [F, rank]: root @ root.T is sigma.

        Directions whose variance is 0 within the precision of float64 are left out, so that the rounding errors of a
        singular covariance add nothing.
        """
        values, vectors = scipy.linalg.eigh(self.sigma)
        kept = values > values[-1].clip(0) * len(values) * np.finfo(np.float64).eps
        return vectors[:, kept] * np.sqrt(values[kept])

    @property
    def rank(self) -> int:
        """The rank of the covariance. It is below F, for example, if there are no more images than features."""
        return self.root.shape[1]


class Moments:
    """Accumulates the mean and covariance of features that come in batches.

    It holds two [F, F] matrices and few features.

    Attributes:
      count: number of features so far.
    """

    def __init__(self):
        self.count = 0
        self._waiting = []
        self._num_waiting = 0
        self._shift = self._sum = self._products = None

    def add(self, features: np.ndarray) -> None:
        """Adds features, float [B, ...]. Each is flattened to F numbers."""
        self.count += len(features)
        self._num_waiting += len(features)
        self._waiting.append(np.asarray(features, np.float64).reshape(len(features), -1))
        # A product of few features would mostly move the [F, F] matrix through memory.
        if self._num_waiting >= _ROWS:
            self._add_waiting()

    def _add_waiting(self) -> None:
        if not self._waiting:
            return
        features = np.concatenate(self._waiting)
        self._waiting, self._num_waiting = [], 0
        if self._shift is None:
            # Sums are taken relative to a point among the features. Relative to 0, a large mean would cancel the digits
            # of a small variance.
            self._shift = features.mean(axis=0)
            self._sum = np.zeros_like(self._shift)
            self._products = np.zeros((features.shape[1],) * 2)
        features -= self._shift
        self._sum += features.sum(axis=0)
        self._products += features.T @ features

    def gaussian(self) -> Gaussian:
        """Returns the distribution of the features that were added.

        Raises:
          UserError: there are fewer than two features, which have no covariance.
        """
        if self.count < 2:
            raise UserError(f"{self.count} image(s) have no covariance: give at least 2")
        self._add_waiting()
        mean = self._sum / self.count
        sigma = (self._products - self.count * np.outer(mean, mean)) / (self.count - 1)
        return Gaussian(self._shift + mean, sigma)


def gaussian(features: np.ndarray) -> Gaussian:
    """Returns the distribution of features float [N, ...], N at least 2."""
    moments = Moments()
    moments.add(features)
    return moments.gaussian()


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Computes the FID of two Gaussians (Heusel et al., 2017): |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    With S = R R^T, the trace of the square root is the sum of the singular values of R_a^T R_b. This never takes the
    square root of a number that rounding made negative, and it works for singular covariances.

    Returns:
      The distance, in squared units of the features.

    Raises:
      UserError: the Gaussians have different numbers of features.
    """
    if a.mu.shape != b.mu.shape:
        raise UserError(
            f"statistics of {len(a.mu)} and {len(b.mu)} features cannot be compared: use the same features for both"
        )
    cross = scipy.linalg.svdvals(a.root.T @ b.root).sum()
    shift = a.mu - b.mu
    return float(shift @ shift + np.trace(a.sigma) + np.trace(b.sigma) - 2 * cross)


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Computes `frechet` for two sets of features, float [N, F] and [M, F], N and M at least 2."""
    return frechet(gaussian(features_a), gaussian(features_b))


def inception_score(logits: np.ndarray, split_size: int = SPLIT_SIZE) -> float:
    """Computes the Inception Score (Salimans et al., 2016): the mean over splits of exp(E KL(p(y|x) || p(y))).

    Splits are consecutive, so the order of the images matters. A short last split counts as much as the others, as in
    the ADM evaluator.

    Args:
      logits: float [N, classes]. For the FID Inception network, these are the logits without bias.
      split_size: number of images per split.

    Returns:
      The score, from 1 to the number of classes.
    """
    scores = []
    for start in range(0, len(logits), split_size):
        probabilities = scipy.special.softmax(np.asarray(logits[start : start + split_size], np.float64), axis=1)
        divergence = scipy.special.rel_entr(probabilities, probabilities.mean(axis=0))
        scores.append(np.exp(divergence.sum(axis=1).mean()))
    return float(np.mean(scores))
