import numpy as np
import pytest
import scipy.linalg

from rar_jax.evaluation.statistics import frechet_distance


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((12, 12))
    return rng.standard_normal((400, 12)) @ mix, rng.standard_normal((300, 12)) @ mix.T + 0.5


def test_against_the_matrix_square_root(features):
    a, b = features
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    shift = a.mean(0) - b.mean(0)
    expected = shift @ shift + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_zero_to_itself_and_symmetric(features):
    a, b = features
    assert abs(frechet_distance(a, a)) < 1e-6 * np.trace(np.cov(a.T))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_a_shift_counts_its_square(features):
    a = features[0]
    assert frechet_distance(a, a + 2.0) == pytest.approx(4.0 * 12, rel=1e-6)


def test_singular_covariances(features):
    a, b = (np.pad(x, ((0, 0), (0, 3))) for x in features)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(*features), rel=1e-6)
