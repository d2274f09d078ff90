"""The annealed random permutation: the one change RAR makes to autoregressive training."""

import jax
import jax.numpy as jnp


def randomness(step: jax.Array, start: int, end: int) -> jax.Array:
    """The probability r that a sample's tokens are permuted, at a step; the paper counts its window in epochs.

    1 before `start`, linear down to 0 at `end`, 0 after. start == end switches from 1 to 0 at that step, so that
    (0, 0) is plain training in the scan order and an end past the run never anneals.

    Args:
      step: int32 [] or [N], counted from 0.
      start: the step at which r begins to fall.
      end: the step at which r reaches 0; start <= end.

    Returns:
      float32, the shape of step.
    """
    if start == end:
        return jnp.where(step < start, 1.0, 0.0).astype(jnp.float32)
    return jnp.clip((end - step) / (end - start), 0.0, 1.0).astype(jnp.float32)


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    """One key for each row of the global batch, so that draws do not depend on how rows are spread over devices.

    Args:
      key: a typed PRNG key [].
      rows: int32 [B], each row's place in the global batch.

    Returns:
      typed PRNG keys [B].
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def sample_orders(key: jax.Array, batch_size: int, scan_order: jax.Array, r: jax.Array) -> jax.Array:
    """Draws the order in which each sample of a batch is trained.

    Each row is, independently, a uniformly random permutation with probability r, else `scan_order`.

    Args:
      key: a typed PRNG key [], of this step.
      batch_size: B, of the global batch.
      scan_order: int32 [T], the target order, a permutation of 0..T-1.
      r: float32 [], the probability of a permutation.

    Returns:
      int32 [B, T]: entry (b, k) is the grid position visited k-th.
    """

    def draw(row_key):
        choice_key, order_key = jax.random.split(row_key)
        permuted = jax.random.permutation(order_key, scan_order)
        return jnp.where(jax.random.uniform(choice_key) < r, permuted, scan_order)

    return jax.vmap(draw)(row_keys(key, jnp.arange(batch_size)))
