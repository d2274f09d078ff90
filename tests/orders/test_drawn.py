import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rar_jax.orders.drawn import known_first, spread_orders

SPREAD = jax.jit(spread_orders, static_argnums=(2, 3))
NOTHING = np.zeros((5, 64), bool)


@pytest.mark.parametrize("sizes", [(1,) * 64, (4,) * 16, (3,) * 21 + (1,), (64,)], ids=str)
def test_spread_orders_are_permutations_from_key_and_number(sizes):
    key = jax.random.key(0)
    orders = np.asarray(SPREAD(key, jnp.arange(5), 8, sizes, NOTHING))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(64), (5, 1)))
    np.testing.assert_array_equal(orders[3:], SPREAD(key, jnp.arange(3, 5), 8, sizes, NOTHING[3:]))
    assert (orders[0] != orders[1]).any()


def test_a_group_is_far_apart_and_near_to_what_is_known():
    orders = np.asarray(SPREAD(jax.random.key(1), jnp.arange(5), 8, (4,) * 16, NOTHING))
    place = np.stack(np.divmod(orders, 8), axis=-1)
    apart = np.abs(place[:, :, None] - place[:, None]).max(axis=-1)
    for start in range(0, 32, 4):
        group = apart[:, start : start + 4, start : start + 4] + 8 * np.eye(4, dtype=int)
        # A regular grid of four has a spacing of four; it falls where the positions left are few.
        assert (group.min(axis=(1, 2)) >= (4 if start < 16 else 2)).all()
        if start:
            assert apart[:, start, :start].min(axis=1).max() <= 2


def test_known_positions_come_first_and_the_others_keep_their_order():
    known = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    orders = np.array([[3, 2, 1, 0], [2, 0, 1, 3], [3, 2, 1, 0]])
    np.testing.assert_array_equal(known_first(orders, known), [[1, 3, 2, 0], [2, 0, 1, 3], [0, 1, 2, 3]])
