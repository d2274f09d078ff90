import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rar_jax.orders import randomness, sample_orders, scan_order

EPOCH = 625
# (start, end) in epochs, from the paper's Table 2.
TABLE_2 = [(start, end) for start in (0, 100, 200, 300, 400) for end in (0, 100, 200, 300, 400) if start <= end]


def test_golden_randomness(golden_json):
    golden = golden_json("schedules.json")
    steps = jnp.array(golden["randomness_steps"])
    np.testing.assert_allclose(randomness(steps, 125_000, 187_500), golden["randomness"], atol=1e-6)


@pytest.mark.parametrize(("start", "end"), TABLE_2)
def test_annealing_windows_of_table_2(start, end):
    last = 400 * EPOCH - 1
    start, end = start * EPOCH, end * EPOCH

    def r(step):
        return float(randomness(jnp.int32(step), start, end))

    assert len(TABLE_2) == 15
    if start > 0:
        assert r(0) == 1 and r(start - 1) == 1
    if end <= last:
        assert r(end) == 0 and r(last) == 0
    if start == end:
        # r switches from 1 to 0: (0, 0) is plain raster training, and (400, 400) never anneals.
        assert {r(step) for step in range(0, last, 997)} <= {0.0, 1.0}
        assert r(last) == (1.0 if start > last else 0.0)
    else:
        assert r(start) == 1
        assert r((start + end) // 2) == pytest.approx(0.5, abs=1e-4)
        assert r(end - 1) == pytest.approx(1 / (end - start), rel=1e-3)


def test_the_cosine_shape():
    found = randomness(jnp.array([0, 10, 15, 20, 25, 30, 99]), 10, 30, 0.2, "cosine")
    # A quarter of the way, the share is (1 + cos(pi / 4)) / 2 = 0.853553.
    np.testing.assert_allclose(found, 0.2 + 0.8 * np.array([1, 1, 0.853553, 0.5, 0.146447, 0, 0]), atol=1e-6)


@pytest.mark.parametrize("window", [(0, 0), (3, 3), (3, 7), (12, 12)])
def test_the_window_may_be_traced(window):
    steps = jnp.arange(12)
    found = jax.jit(randomness)(steps, *window, 0.25)
    np.testing.assert_array_equal(found, randomness(steps, *window, 0.25))


@pytest.mark.parametrize("name", ["row_major", "spiral_out"])
def test_r_zero_keeps_the_target_order(name):
    order = scan_order(name, 4)
    orders = sample_orders(jax.random.key(0), 64, jnp.asarray(order), jnp.float32(0))
    np.testing.assert_array_equal(orders, np.broadcast_to(order, (64, 16)))


def test_r_one_is_uniform():
    """The position at each place, and all 24 orders of four positions, are uniform by a chi-square test."""
    orders = np.asarray(sample_orders(jax.random.key(3), 20_000, jnp.arange(16), jnp.float32(1)))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.broadcast_to(np.arange(16), orders.shape))
    for place in range(16):
        assert scipy.stats.chisquare(np.bincount(orders[:, place], minlength=16)).pvalue > 1e-4
    few = np.asarray(sample_orders(jax.random.key(4), 24_000, jnp.arange(4), jnp.float32(1)))
    _, counts = np.unique(few, axis=0, return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("r", [0.1, 0.5, 0.9])
def test_share_of_permuted_samples_is_r(r):
    count = 20_000
    orders = np.asarray(sample_orders(jax.random.key(7), count, jnp.arange(64), jnp.float32(r)))
    permuted = (orders != np.arange(64)).any(axis=1).sum()
    assert abs(permuted - r * count) < 4 * np.sqrt(count * r * (1 - r))


def test_a_row_depends_on_its_place_alone():
    small, large = (sample_orders(jax.random.key(1), n, jnp.arange(16), jnp.float32(0.5)) for n in (8, 32))
    np.testing.assert_array_equal(small, large[:8])


def test_r_keeps_its_final_value():
    steps = jnp.array([0, 100, 150, 200, 1000])
    np.testing.assert_allclose(randomness(steps, 100, 200, 0.4), [1, 1, 0.7, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(randomness(steps, 100, 100, 0.4), [1, 0.4, 0.4, 0.4, 0.4], rtol=1e-6)
