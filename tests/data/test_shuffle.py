import numpy as np
import pytest
import scipy.stats

from rar_jax.data.shuffle import shuffled


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000, 65_537, 1_281_167])
def test_bijection(n):
    np.testing.assert_array_equal(np.sort(shuffled(np.arange(n), n, seed=0, epoch=0)), np.arange(n))


def test_any_part_can_be_computed_by_itself():
    whole = shuffled(np.arange(1000), 1000, seed=1, epoch=2)
    np.testing.assert_array_equal(shuffled(np.array([7, 999, 7]), 1000, seed=1, epoch=2), whole[[7, 999, 7]])


def test_seeds_and_epochs_differ():
    orders = [shuffled(np.arange(1000), 1000, seed, epoch) for seed in range(3) for epoch in range(3)]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert (a == b).mean() < 0.02


@pytest.mark.parametrize("n", [10, 1437])
def test_uniform(n):
    """Over many epochs, an item's place and its distance to the next item are uniform by a chi-square test."""
    epochs = 3000
    orders = np.stack([shuffled(np.arange(n), n, 0, epoch) for epoch in range(epochs)])
    for item in (0, n // 2, n - 1):
        counts = np.bincount(orders[:, item] * 10 // n, minlength=10)
        expected = np.bincount(np.arange(n) * 10 // n) / n * epochs
        assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4
    steps = (orders[:, 1] - orders[:, 0]) % n
    assert (
        scipy.stats.chisquare(
            np.bincount(steps * 3 // n, minlength=3),
            np.bincount(np.arange(1, n) * 3 // n, minlength=3) * epochs / (n - 1),
        ).pvalue
        > 1e-4
    )
