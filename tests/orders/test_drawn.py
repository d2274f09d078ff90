import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rar_jax.orders.drawn import group_spacing, known_first, spread_orders

SPREAD = jax.jit(spread_orders, static_argnums=(2, 3))
NOTHING = np.zeros((5, 64), bool)


@pytest.mark.parametrize("sizes", [(1,) * 64, (4,) * 16, (3,) * 21 + (1,), (64,)], ids=str)
def test_spread_orders_are_permutations_from_key_and_number(sizes):
    key = jax.random.key(0)
    orders = np.asarray(SPREAD(key, jnp.arange(5), 8, sizes, NOTHING))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(64), (5, 1)))
    np.testing.assert_array_equal(orders[3:], SPREAD(key, jnp.arange(3, 5), 8, sizes, NOTHING[3:]))
    assert (orders[0] != orders[1]).any()


@pytest.mark.parametrize(("side", "size", "spacing"), [(8, 4, 4), (8, 16, 2), (16, 8, 5)])
def test_a_group_is_far_apart_and_near_to_what_is_known(side, size, spacing):
    assert group_spacing(side, size) == spacing
    num_tokens = side**2
    place = np.stack(np.divmod(np.arange(num_tokens), side), axis=1)
    offsets = np.abs(place[:, None] - place)
    apart, near = offsets.max(axis=-1), np.exp(-(offsets**2).sum(axis=-1) / (2 * 1.5**2))
    given = np.zeros((3, num_tokens), bool)
    given[2, : 2 * size] = True
    orders = np.asarray(SPREAD(jax.random.key(1), jnp.arange(3), side, (size,) * (num_tokens // size), given))
    for order, known in zip(orders, given, strict=True):
        unknown = num_tokens - known.sum()
        np.testing.assert_array_equal(order[unknown:], np.flatnonzero(known))
        for start in range(0, unknown, size):
            free, group = ~known, []
            for chosen in order[start : start + size]:
                # At least d from the group's others, or else as far as possible.
                distance = np.minimum(apart[:, group].min(axis=1, initial=side), spacing)
                assert free[chosen] and distance[chosen] == distance[free].max()
                allowed = free & (distance == distance[chosen])
                nearness = near @ known
                assert nearness[chosen] >= nearness[allowed].max() - 1e-4
                group.append(chosen)
                free[chosen] = False
            within = apart[np.ix_(group, group)][~np.eye(size, dtype=bool)]
            # While a quarter is drawn, chosen positions leave enough that are nearly as far as on a regular grid.
            assert start >= unknown // 4 or within.min() >= spacing - 1
            known = ~free


def test_known_positions_come_first_and_both_parts_keep_their_order():
    known = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    orders = np.array([[3, 2, 1, 0], [2, 0, 1, 3], [3, 2, 1, 0]])
    np.testing.assert_array_equal(known_first(orders, known), [[3, 1, 2, 0], [2, 0, 1, 3], [3, 2, 1, 0]])
