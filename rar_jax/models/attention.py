"""Attention, and causal attention whose backward pass recomputes the attention weights.

Dimension letters: B batch, S places of the sequence, H heads, K width of a head; Sq places of queries, Sk of keys.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from rar_jax.models.dropout import drop, zeros

# The name of what `models.rar.REMAT_POLICIES` keeps of attention.
ATTENDED = "attended"

_LOWEST = jnp.finfo(jnp.float32).min


def softmax_weights(scores: jax.Array, mask: jax.Array, head_width: int) -> jax.Array:
    """Computes softmax(scores / sqrt(K)) over the last axis: float32 [..., Sk].

    Args:
      scores: float32 [..., Sk], products of queries and keys.
      mask: bool, broadcastable to the scores; False where a query must not attend.
      head_width: K.
    """
    return jax.nn.softmax(jnp.where(mask, scores * head_width**-0.5, _LOWEST))


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Multiplies queries [B, Sq, H, K] and keys [B, Sk, H, K]: float32 [B, H, Sq, Sk]."""
    return jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)


def attention_weights(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes softmax(q k / sqrt(K)) in float32.

    Args:
      q: [B, Sq, H, K].
      k: [B, Sk, H, K].
      mask: bool, broadcastable to [B, H, Sq, Sk]; False where a query must not attend.

    Returns:
      [B, H, Sq, Sk] in q's dtype.
    """
    return softmax_weights(_scores(q, k), mask, q.shape[-1]).astype(q.dtype)


def weighted_values(weights: jax.Array, v: jax.Array) -> jax.Array:
    """Sums values [B, Sk, H, K] with weights [B, H, Sq, Sk]: [B, Sq, H, K]."""
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def _causal_scores(q: jax.Array, k: jax.Array, seeds: jax.Array | None) -> jax.Array:
    """Computes q k / sqrt(K) where a query may attend, and the lowest number elsewhere: float32 [B, H, S, S]."""
    places, lowest = jnp.arange(q.shape[1]), _LOWEST
    mask = places[:, None] >= places
    if seeds is not None:
        zero = zeros(seeds, 4)
        mask, lowest = mask & (zero == 0), lowest + zero.astype(jnp.float32)
    return jnp.where(mask, _scores(q, k) * q.shape[-1] ** -0.5, lowest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, seeds: jax.Array | None, rate: float) -> jax.Array:
    """Computes causal attention: q, k, v [B, S, H, K] -> [B, S, H, K].

    Attention weights are dropped with probability `rate` if there are seeds uint32 [B, 2] (`models.dropout`).

    The backward pass needs q, k, v, the output and the logarithms of the softmax's denominators, and computes the
    weights again, as in Dao et al., 2022, "FlashAttention", appendix B.2. The weights are most of a block's memory, and
    1% of its FLOPs. With weights P, which become W by dropout, and the gradient do of the output o:

        dv = W^T do,  dP = drop(do v^T),  dS = P (dP - sum(do o)),  dq = dS k / sqrt(K),  dk = dS^T q / sqrt(K)
    """
    return _causal_attention_forward(q, k, v, seeds, rate)[0]


def _causal_attention_forward(q, k, v, seeds, rate):
    scores = _causal_scores(q, k, seeds)
    highest = scores.max(axis=-1, keepdims=True)
    powers = jnp.exp(scores - highest)
    total = powers.sum(axis=-1, keepdims=True)
    weights = (powers / total).astype(q.dtype)
    out = checkpoint_name(weighted_values(drop(weights, seeds, rate), v), ATTENDED)
    log_total = checkpoint_name(highest + jnp.log(total), ATTENDED)
    return out, (q, k, v, seeds, out, log_total)


def _causal_attention_backward(rate, kept, gradient):
    q, k, v, seeds, out, log_total = kept
    weights = jnp.exp(_causal_scores(q, k, seeds) - log_total)
    dropped = drop(weights.astype(q.dtype), seeds, rate)
    mean = jnp.einsum("bqhd,bqhd->bhq", gradient, out, preferred_element_type=jnp.float32)[..., None]
    to_weights = drop(jnp.einsum("bqhd,bkhd->bhqk", gradient, v), seeds, rate)
    to_scores = (weights * (to_weights - mean) * q.shape[-1] ** -0.5).astype(q.dtype)
    return (
        weighted_values(to_scores, k),
        jnp.einsum("bhqk,bqhd->bkhd", to_scores, q),
        jnp.einsum("bhqk,bqhd->bkhd", dropped, gradient),
        None if seeds is None else np.zeros(seeds.shape, jax.dtypes.float0),
    )


causal_attention.defvjp(_causal_attention_forward, _causal_attention_backward)
