"""Applies an implementation of causal attention to random arrays."""

import jax
import jax.numpy as jnp
import numpy as np

from rar_jax.models.dropout import draw_seeds

RATE = 0.3


def values_and_gradients(attention, dtype, dropped, shape, jit=jax.jit):
    """Returns the output [B, S, H, K] of random q, k and v, and the gradients of a weighted sum of the output.

    Args:
      attention: takes q, k, v, seeds and the dropout rate.
      dtype: of q, k and v.
      dropped: whether weights are dropped.
      shape: (B, S, H, K).
      jit: compiles a function of q, k and v.
    """
    rng = np.random.default_rng(0)
    q, k, v, weights = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(4))
    seeds = draw_seeds(jax.random.key(1), 1, shape[0]).weights[0] if dropped else None

    def product(q, k, v):
        out = attention(q, k, v, seeds, RATE)
        return (out * weights).astype(jnp.float32).sum(), out

    (_, out), gradients = jit(jax.value_and_grad(product, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients
