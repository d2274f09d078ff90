"""Choosing a token from logits: temperature, top-k, top-p."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Choice(NamedTuple):
    """How a token is chosen; each is a scalar, or None to go without.

    Attributes:
      temperature: float32, above 0, what logits are divided by; None is greedy: the likeliest token.
      top_k: int32, from 1 to V: only the k likeliest tokens can be drawn (all that tie with the k-th).
      top_p: float32, above 0 and up to 1: only the likeliest tokens can be drawn, as many as it takes until their
        probabilities, after temperature and top-k, sum to p (nucleus sampling, Holtzman et al., 2020).
    """

    temperature: jax.Array | None
    top_k: jax.Array | None = None
    top_p: jax.Array | None = None


def _truncate(logits: jax.Array, choice: Choice) -> jax.Array:
    """Logits [B, V] with -inf for the tokens that top-k and top-p rule out."""
    if choice.top_k is None and choice.top_p is None:
        return logits
    ranked = jnp.sort(logits, axis=-1, descending=True)
    ranks = jnp.arange(logits.shape[-1])
    if choice.top_k is not None:
        ranked = jnp.where(ranks < choice.top_k, ranked, -jnp.inf)
    if choice.top_p is not None:
        probabilities = jax.nn.softmax(ranked)
        # The likelier ones fall short of p, so this one is needed; the likeliest always is.
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        ranked = jnp.where((before < choice.top_p) | (ranks == 0), ranked, -jnp.inf)
    least = jnp.min(ranked, axis=-1, keepdims=True, where=jnp.isfinite(ranked), initial=jnp.inf)
    return jnp.where(logits >= least, logits, -jnp.inf)


def choose_token(keys: jax.Array, logits: jax.Array, choice: Choice) -> jax.Array:
    """Draws one token a row.

    Args:
      keys: typed PRNG keys [B], one a row, so that a row's draw does not depend on the rows beside it.
      logits: float32 [B, V].
      choice: how.

    Returns:
      int32 [B].
    """
    if choice.temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = _truncate(logits / choice.temperature, choice)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def token_probabilities(logits: jax.Array, choice: Choice) -> jax.Array:
    """Returns the distribution that `choose_token` draws from: logits float32 [B, V] -> float32 [B, V]."""
    if choice.temperature is None:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    return jax.nn.softmax(_truncate(logits / choice.temperature, choice))
