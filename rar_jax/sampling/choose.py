"""Choosing a token from logits."""

import jax
import jax.numpy as jnp


def choose_token(keys: jax.Array, logits: jax.Array, temperature: jax.Array | None) -> jax.Array:
    """Draws one token a row from softmax(logits / temperature), or takes the most likely one.

    Args:
      keys: typed PRNG keys [B], one a row, so that a row's draw does not depend on the rows beside it.
      logits: float32 [B, V].
      temperature: float32 [], above 0; None is greedy.

    Returns:
      int32 [B].
    """
    if temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits / temperature).astype(jnp.int32)
