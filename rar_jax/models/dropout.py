"""Dropout whose random bits are cheap and the same on any mesh.

A mask is a hash of the seeds of a batch row and the place within the row. The hash takes a few integer operations,
which XLA fuses with the multiplication by the mask. No bits are stored: the backward pass computes the hash again, and
each device computes it for its own rows. Threefry, JAX's default generator, takes about a hundred operations per draw,
so it draws only the seeds.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rar_jax.orders import row_keys


def _mix(x: jax.Array, shift: int, multiplier: int) -> jax.Array:
    return (x ^ (x >> shift)) * np.uint32(multiplier)


def kept(place: jax.Array, first: jax.Array, second: jax.Array, rate: float) -> jax.Array:
    """Returns which elements dropout keeps, bool, from their places in the row and the row's seeds, all uint32.

    The mixing steps are those of C. Wellons' hash lowbias32 (https://nullprogram.com/blog/2018/07/31/). The first seed
    is added before the first step, and the second seed is combined by xor before the second step.
    """
    x = _mix(place + first, 16, 0x7FEB352D)
    x = _mix(x ^ second, 15, 0x846CA68B)
    return x ^ (x >> 16) >= np.uint32(round(rate * 2**32))


def _kept(seeds: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Returns which elements of an array of a shape [B, ...] are kept, from the seeds uint32 [B, 2] of its rows."""
    place = jnp.zeros((1,) * len(shape), jnp.uint32)
    for axis in range(1, len(shape)):
        # A row of more than 2^32 elements would repeat its mask.
        stride = np.uint32(np.prod(shape[axis + 1 :], dtype=np.int64) % 2**32)
        place = place + jax.lax.broadcasted_iota(jnp.uint32, (1, *shape[1:]), axis) * stride
    first, second = (seeds[:, i].reshape(-1, *(1,) * (len(shape) - 1)) for i in range(2))
    return kept(place, first, second, rate)


def zeros(seeds: jax.Array, axes: int) -> jax.Array:
    """Returns zeros uint32 [B, 1, ...] with a given number of axes, computed from seeds uint32 [B, 2].

    JAX computes what depends on constants alone once, outside the loop over blocks. A constant that is broadcast to the
    size of an activation would then be an array in memory, which every block reads. XLA removes these zeros.
    """
    return (seeds & 0)[:, 0].reshape(-1, *(1,) * (axes - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _drop(x: jax.Array, seeds: jax.Array, rate: float) -> jax.Array:
    """Drops elements of x as `drop` does, given seeds."""
    return jnp.where(
        _kept(seeds, x.shape, rate), x * np.asarray(1 / (1 - rate), x.dtype), zeros(seeds, x.ndim).astype(x.dtype)
    )


def _drop_forward(x, seeds, rate):
    return _drop(x, seeds, rate), seeds


def _drop_backward(rate, seeds, gradient):
    return _drop(gradient, seeds, rate), np.zeros(seeds.shape, jax.dtypes.float0)


_drop.defvjp(_drop_forward, _drop_backward)


def drop(x: jax.Array, seeds: jax.Array | None, rate: float) -> jax.Array:
    """Sets each element of x to zero with probability `rate`, and divides the others by 1 - rate.

    Args:
      x: [B, ...]. The elements dropped in a row depend on its seeds and its shape, not on the other rows.
      seeds: uint32 [B, 2], or None to return x unchanged, as outside training.
      rate: probability from 0 to below 1, rounded to a multiple of 2^-32.
    """
    return x if seeds is None or not rate else _drop(x, seeds, rate)


class Seeds(NamedTuple):
    """The seeds of a block's four dropouts.

    Each is uint32 [B, 2], or [L, B, 2] for all blocks, or None to drop nothing.

    Attributes:
      weights: for dropout of the attention probabilities.
      projection: for dropout after the output projection of the attention.
      hidden: for dropout after GELU.
      output: for dropout after the second MLP layer.
    """

    weights: jax.Array | None = None
    projection: jax.Array | None = None
    hidden: jax.Array | None = None
    output: jax.Array | None = None


NO_DROPOUT = Seeds()


def draw_seeds(key: jax.Array, depth: int, rows: int) -> Seeds:
    """Draws the seeds of every dropout for every block and every row.

    Args:
      key: a typed PRNG key [].
      depth: L.
      rows: B.

    Returns:
      Seeds uint32 [L, B, 2].
    """
    keys = jax.random.split(key, (len(Seeds._fields), depth))
    each_row = jax.vmap(jax.vmap(row_keys, in_axes=(0, None)), in_axes=(0, None))
    return Seeds(*jax.random.key_data(each_row(keys, jnp.arange(rows)))[..., :2])
