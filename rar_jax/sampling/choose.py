"""Chooses tokens from logits, with a temperature, top-k and top-p."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Choice(NamedTuple):
    """The settings by which a token is chosen. Each is a scalar.

    Attributes:
      temperature: float32, above 0. Logits are divided by it. None is greedy: it takes the most likely token.
      top_k: int32, from 1 to V. Only the k most likely tokens, and those that tie with the k-th, can be drawn. None
        allows all tokens.
      top_p: float32, above 0, at most 1. Only the most likely tokens can be drawn, in the smallest number whose
        probabilities, after temperature and top-k, sum to p (nucleus sampling, Holtzman et al., 2020). None allows all
        tokens.
    """

    temperature: jax.Array | None
    top_k: jax.Array | None = None
    top_p: jax.Array | None = None


def _truncate(logits: jax.Array, choice: Choice) -> jax.Array:
    """Returns logits [B, V] with -inf for the tokens that top-k and top-p exclude."""
    if choice.top_k is None and choice.top_p is None:
        return logits
    ranked = jnp.sort(logits, axis=-1, descending=True)
    ranks = jnp.arange(logits.shape[-1])
    if choice.top_k is not None:
        ranked = jnp.where(ranks < choice.top_k, ranked, -jnp.inf)
    if choice.top_p is not None:
        probabilities = jax.nn.softmax(ranked)
        # A token is kept if the more likely ones sum to less than p. The most likely token is always kept.
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        ranked = jnp.where((before < choice.top_p) | (ranks == 0), ranked, -jnp.inf)
    least = jnp.min(ranked, axis=-1, keepdims=True, where=jnp.isfinite(ranked), initial=jnp.inf)
    return jnp.where(logits >= least, logits, -jnp.inf)


def choose_token(keys: jax.Array, logits: jax.Array, choice: Choice) -> jax.Array:
    """Draws a token for each row.

    Args:
      keys: typed PRNG keys [B], one per row, so that a row's draw does not depend on the other rows.
      logits: float32 [B, V].
      choice: how tokens are chosen.

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
