"""Orders that are drawn for each sampled image: random ones, and ones whose groups are spread over the grid."""

import jax
import jax.numpy as jnp
import numpy as np

from rar_jax.orders.permutation import row_keys

# Folded into an image's key for its order. The image's tokens fold in 0..T-1.
_ORDER_STREAM = 2**31 - 1
# sigma, in tokens, of the Gaussian that measures how near a position is to the known ones. A direct neighbour counts
# 0.80, a diagonal one 0.64, and one at a distance of four 0.03, because a token depends most on its neighbours.
_NEARNESS = 1.5


def _order_keys(key: jax.Array, numbers: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys(key, numbers), _ORDER_STREAM)


def random_orders(key: jax.Array, numbers: jax.Array, num_tokens: int) -> jax.Array:
    """Draws a uniformly random order for each image.

    Args:
      key: a typed PRNG key [], the same for the whole job.
      numbers: int32 [B], each image's number in the job. The order depends on (key, number) alone.
      num_tokens: T.

    Returns:
      int32 [B, T], positions in the order visited.
    """
    return jax.vmap(jax.random.permutation, in_axes=(0, None))(_order_keys(key, numbers), num_tokens).astype(jnp.int32)


def group_spacing(side: int, size: int) -> int:
    """Returns d, the wanted Chebyshev distance within a group: the spacing of a regular grid of `size` tokens.

    It is large because the tokens of a group are drawn independently of each other. The last positions of a group are
    often nearer, because positions that are chosen one after another are packed less densely than a regular grid.
    """
    return max(1, int(side / np.ceil(np.sqrt(size))))


def spread_orders(key: jax.Array, numbers: jax.Array, side: int, sizes: tuple[int, ...], known: jax.Array) -> jax.Array:
    """Draws orders whose groups are far apart on the grid and near to what is known.

    Within a group, positions are chosen one after another: of those at least d away (Chebyshev distance) from the
    group's others, the one with the largest sum over known positions of exp(-distance^2 / 2 sigma^2). Ties are broken
    at random. d is `group_spacing`; it falls until there is such a position. Known positions are those of earlier
    groups, and those given. The two rules are those of LPD (Zhang et al., 2025).

    Args:
      key, numbers: see `random_orders`.
      side: n of the n x n grid.
      sizes: sizes of the groups, which sum to T.
      known: bool [B, T], positions that are known from the beginning, which are not chosen.

    Returns:
      int32 [B, T], the chosen positions in the order visited, and then the known ones in row-major order.
    """
    place = np.stack(np.divmod(np.arange(side**2), side), axis=1)
    offset = np.abs(place[:, None] - place)
    apart = jnp.asarray(offset.max(axis=-1))
    nearness = jnp.asarray(np.exp(-(offset**2).sum(axis=-1) / (2 * _NEARNESS**2)), jnp.float32)
    begins = np.zeros(side**2, bool)
    begins[np.cumsum(sizes) - sizes] = True
    spacing = np.repeat([group_spacing(side, size) for size in sizes], sizes)

    def draw(key, known):
        noise = jax.random.uniform(key, (side**2,))

        def choose(state, inputs):
            visited, near, pending, distance = state
            begin, spacing = inputs
            # The positions of the last group are known when a new group begins.
            near, pending = jnp.where(begin, near + pending, near), jnp.where(begin, 0.0, pending)
            distance = jnp.minimum(jnp.where(begin, side, distance), spacing)
            allowed = ~visited & (distance == jnp.max(distance, initial=0, where=~visited))
            best = allowed & (near >= jnp.max(near, initial=-1, where=allowed) - 1e-6)
            chosen = jnp.argmax(jnp.where(best, 1 + noise, jnp.where(visited, -1.0, 0.0)))
            distance = jnp.minimum(distance, apart[chosen])
            return (visited.at[chosen].set(True), near, pending + nearness[chosen], distance), chosen

        state = known, known.astype(jnp.float32) @ nearness, jnp.zeros(side**2), jnp.full(side**2, side)
        chosen = jax.lax.scan(choose, state, (jnp.asarray(begins), jnp.asarray(spacing)))[1]
        # When nothing is left to choose, the scan repeats positions: the first place of each counts.
        places = jnp.full(side**2, side**2).at[chosen].min(jnp.arange(side**2))
        return jnp.argsort(jnp.where(known, side**2, places), stable=True)

    return jax.vmap(draw)(_order_keys(key, numbers), known).astype(jnp.int32)


def known_first(orders: jax.Array, known: jax.Array) -> jax.Array:
    """Moves known positions to the front of orders int32 [B, T]; known is bool [B, T], in grid order.

    The known positions keep their order, and so do the others. A known part that the order visits first, such as the
    upper half of the image in row-major order, is then read exactly as in training.
    """
    places = jnp.argsort(~jnp.take_along_axis(known, orders, axis=1), axis=1, stable=True)
    return jnp.take_along_axis(orders, places, axis=1)
