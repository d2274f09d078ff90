"""The log-likelihood of images, in any order."""

import jax
import jax.numpy as jnp
import optax

from rar_jax.models.rar import RAR
from rar_jax.models.sizes import PREFIX
from rar_jax.sampling.cached import CachedNetwork, DecodeParams


def token_log_likelihoods(
    model: RAR, params: DecodeParams, labels: jax.Array, tokens: jax.Array, orders: jax.Array
) -> jax.Array:
    """Computes log p(x_pi(k) | class, x_pi(1) .. x_pi(k-1)) of each token. Pure; to be jitted with `model` static.

    Args:
      model: the network.
      params: from `sampling.cached.prepare`.
      labels: int32 [B], 0..C.
      tokens: int32 [B, T], in grid order.
      orders: int32 [B, T], positions in the order visited.

    Returns:
      float32 [B, T], nats, in grid order.
    """
    network = CachedNetwork(model, params, labels, orders, guided=False)
    visited = jnp.take_along_axis(tokens, orders, axis=1)
    logits, _ = network.read_all(visited, model.config.num_tokens + PREFIX)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, visited)
    return jax.vmap(lambda losses, order: jnp.zeros_like(losses).at[order].set(-losses))(losses, orders)
