"""The annealed random permutation, which is the only change that RAR makes to autoregressive training."""

import jax
import jax.numpy as jnp

# Shapes of the fall of r.
SHAPES = ("linear", "cosine")


def randomness(
    step: jax.Array,
    start: int | jax.Array,
    end: int | jax.Array,
    final: float | jax.Array = 0.0,
    shape: str = "linear",
) -> jax.Array:
    """Returns the probability r that the tokens of a sample are permuted at a training step.

    r is 1 before `start`, falls to `final` at `end`, and keeps that value. If start == end, it switches at
    that step: with (0, 0) all training is in the scan order, and with both at the end of the run r is always 1. The
    paper gives start and end in epochs (Table 2), and its final value is 0.

    Args:
      step: int32 [] or [N], steps counted from 0.
      start: the step at which r begins to fall; this and the next two may be traced.
      end: the step at which r reaches `final`; start <= end.
      final: from 0 to 1.
      shape: linear, as in the paper, or cosine, half a period of it, which is flat at both ends.

    Returns:
      float32, in the shape of step.
    """
    # Steps are whole numbers, so that a length of 1 switches as a length of 0 would.
    length = jnp.maximum(end - start, 1)
    share = jnp.clip((end - step) / length, 0.0, 1.0)
    if shape == "cosine":
        share = (1 - jnp.cos(jnp.pi * share)) / 2
    return (final + (1 - final) * share).astype(jnp.float32)


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns a key for each row of the global batch, so that draws do not depend on how the batch is sharded.

    Args:
      key: a typed PRNG key [].
      rows: int32 [B], each row's place in the global batch.

    Returns:
      Typed PRNG keys [B].
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def sample_orders(key: jax.Array, batch_size: int, scan_order: jax.Array, r: jax.Array) -> jax.Array:
    """Draws the order in which the tokens of each sample of a batch are predicted.

    Each sample's order is, independently, a uniformly random permutation with probability r, else `scan_order`.

    Args:
      key: a typed PRNG key [] of this step.
      batch_size: B, the size of the global batch.
      scan_order: int32 [T], the scan order to which training anneals, a permutation of 0..T-1.
      r: float32 [], the probability of a permutation.

    Returns:
      int32 [B, T]: entry (b, k) is the grid position visited k-th.
    """

    def draw(row_key):
        choice_key, order_key = jax.random.split(row_key)
        permuted = jax.random.permutation(order_key, scan_order)
        return jnp.where(jax.random.uniform(choice_key) < r, permuted, scan_order)

    return jax.vmap(draw)(row_keys(key, jnp.arange(batch_size)))
