"""Distances between sets of features."""

import numpy as np
import scipy.linalg


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), the distance of two Gaussians fitted to features.

    The trace of the root is the sum of the square roots of the eigenvalues of S_a S_b, which are those of the
    symmetric S_a^(1/2) S_b S_a^(1/2), so that singular covariances do no harm. Covariances have ddof 1, as in the ADM
    evaluator.

    Args:
      features_a, features_b: float [N, F] and [M, F], N and M at least 2.

    Returns:
      In squared units of the features.
    """
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = scipy.linalg.eigh(covariance_a)
    root = vectors * np.sqrt(values.clip(0))
    cross = np.sqrt(scipy.linalg.eigvalsh(root.T @ covariance_b @ root).clip(0)).sum()
    shift = a.mean(axis=0) - b.mean(axis=0)
    return float(shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross)
