import numpy as np
import pytest
import scipy.linalg
from conftest import DATA

from rar_jax.errors import UserError
from rar_jax.evaluation.statistics import Moments, frechet_distance, gaussian, inception_score


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


def test_the_distance_is_symmetric_and_zero_for_equal_sets(features):
    a, b = features
    assert abs(frechet_distance(a, a)) < 1e-6 * np.trace(np.cov(a.T))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_a_shift_adds_its_square(features):
    a = features[0]
    assert frechet_distance(a, a + 2.0) == pytest.approx(4.0 * 12, rel=1e-6)


def test_singular_covariances(features):
    a, b = (np.pad(x, ((0, 0), (0, 3))) for x in features)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(*features), rel=1e-6)


@pytest.fixture(scope="module")
def adm():
    return np.load(DATA / "adm_metrics.npz")


def test_adm_inception_score(adm):
    with np.errstate(divide="ignore"):
        logits = np.log(adm["softmax_probs"])
    score = inception_score(logits, int(adm["inception_split_size"]))
    assert score == pytest.approx(adm["inception_score"], rel=1e-5)
    assert abs(inception_score(logits) - score) > 1e-3


def test_inception_score_at_its_limits():
    logits = 100 * np.eye(8)
    assert inception_score(np.zeros((20, 8))) == pytest.approx(1)
    assert inception_score(logits) == pytest.approx(8)
    # The short last split, with a score of 1, counts as much as the full split, with a score of 8.
    assert inception_score(np.concatenate([logits, logits[:2] * 0]), split_size=8) == pytest.approx((8 + 1) / 2)


def test_batches_do_not_matter(features):
    a = features[0].astype(np.float32) + 1000
    moments = Moments()
    for part in np.split(a, [1, 3, 350]):
        moments.add(part)
    found = moments.gaussian()
    np.testing.assert_allclose(found.mu, a.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.sigma, np.cov(a.T.astype(np.float64)), rtol=1e-9, atol=1e-9)
    assert moments.count == 400


def test_fewer_images_than_features():
    """Covariances have rank 3 in 50 dimensions, so the square root of their product would be noise."""
    a, b = np.random.default_rng(0).standard_normal((2, 4, 50))
    assert gaussian(a).root.shape == (50, 3)
    assert abs(frechet_distance(a, a)) < 1e-12 * np.trace(gaussian(a).sigma)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    constant = np.ones((4, 50))
    expected = np.trace(gaussian(a).sigma) + ((a.mean(0) - 1) ** 2).sum()
    assert frechet_distance(a, constant) == pytest.approx(expected, rel=1e-12)


def test_one_image_has_no_covariance():
    with pytest.raises(UserError, match=r"1 image\(s\) have no covariance"):
        gaussian(np.ones((1, 3)))
