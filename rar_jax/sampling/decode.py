"""The decode loop: one token a step through a static KV cache, in any scan order.

Dimension letters as in `models.rar`; R is the number of rows decoded, 2B with guidance (conditional ones first).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rar_jax.models.rar import PREFIX, RAR, attention_weights, weighted_values
from rar_jax.orders import row_keys
from rar_jax.sampling.choose import choose_token
from rar_jax.sampling.guidance import guide


class DecodeParams(NamedTuple):
    """Parameters laid out for decoding.

    Attributes:
      outer: those outside the blocks, as the model has them.
      blocks: one tree a block. Slicing stacked arrays inside the loop would copy every weight at every step.
    """

    outer: dict[str, Any]
    blocks: tuple[dict[str, Any], ...]


class Cache(NamedTuple):
    """Keys and values of one block: [R, T+1, H, K], in the compute dtype. The last image token is never run."""

    k: jax.Array
    v: jax.Array


def prepare(model: RAR, params: dict[str, Any]) -> DecodeParams:
    """Unstacks the blocks and casts to the compute dtype, once, outside the loop."""
    params = jax.tree.map(lambda x: x.astype(model.dtype), params)
    outer = {name: value for name, value in params.items() if name != "blocks"}
    leaves, structure = jax.tree.flatten(params["blocks"])
    layers = zip(*map(tuple, leaves), strict=True)
    return DecodeParams(outer, tuple(jax.tree.unflatten(structure, layer) for layer in layers))


def empty_cache(model: RAR, rows: int) -> tuple[Cache, ...]:
    """One cache of zeros a block."""
    shape = (rows, model.num_tokens + 1, model.num_heads, model.width // model.num_heads)
    return tuple(Cache(jnp.zeros(shape, model.dtype), jnp.zeros(shape, model.dtype)) for _ in range(model.depth))


def _run(model: RAR, params: DecodeParams, caches, x, labels, place):
    """Runs tokens x [R, S, D] that stand at `place` onwards: logits [R, V] of the last one, and the caches grown."""
    length = x.shape[1]
    places = place + jnp.arange(length)
    outer = {"params": params.outer}
    condition = model.apply(outer, labels, places, method=RAR.condition)
    mask = jnp.arange(model.num_tokens + 1)[None, :] <= places[:, None]
    block, grown = model.block(), []
    for block_params, cache in zip(params.blocks, caches, strict=True):

        def attend(q, k, v, cache=cache):
            k = jax.lax.dynamic_update_slice_in_dim(cache.k, k, place, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache.v, v, place, axis=1)
            return weighted_values(attention_weights(q, k, mask), v), Cache(k, v)

        variables = {"params": block_params}
        modulation = block.apply(variables, condition, method="modulate")
        x, kept = block.apply(variables, x, modulation, attend)
        grown.append(kept)
    logits = model.apply(outer, x[:, -1:], condition[:, -1:], method=RAR.head)
    return logits[:, 0], tuple(grown)


def prefill(model: RAR, params: DecodeParams, labels: jax.Array, first: jax.Array):
    """Runs the cls and the class token.

    Args:
      model: the network. params: from `prepare`.
      labels: int32 [R], C for the null class.
      first: int32 [R], the grid position to be predicted first.

    Returns:
      (logits float32 [R, V] of the first token, caches).
    """
    x = model.apply({"params": params.outer}, labels, first[:, None], method=RAR.embed_prefix)
    return _run(model, params, empty_cache(model, labels.shape[0]), x, labels, 0)


def decode_step(model: RAR, params: DecodeParams, caches, labels, t, token, position, target):
    """Runs one image token.

    Args:
      model, params, caches, labels: as in `prefill`.
      t: int32 [], the token is the t-th of its order, t = 0 .. T-2.
      token: int32 [R]. position: int32 [R], where it stands. target: int32 [R], the position predicted next.

    Returns:
      (logits float32 [R, V] of token t + 1, caches).
    """
    x = model.apply(
        {"params": params.outer}, token[:, None], position[:, None], target[:, None], method=RAR.embed_tokens
    )
    return _run(model, params, caches, x, labels, PREFIX + t)


def decode(
    model: RAR,
    params: DecodeParams,
    labels: jax.Array,
    key: jax.Array,
    rows: jax.Array,
    order: jax.Array,
    guidance_weights: jax.Array | None,
    temperature: jax.Array | None,
) -> jax.Array:
    """Samples the tokens of a batch of images. Pure; to be jitted with model static.

    Args:
      model: the network.
      params: from `prepare`.
      labels: int32 [B], classes 0..C-1 (or C for unconditional images).
      key: a typed PRNG key [], of the whole job.
      rows: int32 [B], each image's number in the job. Its draws depend on (key, row, t) alone, so that it comes out
        the same in whichever batch it is sampled.
      order: int32 [T], the scan order.
      guidance_weights: float32 [T] (`pow_cosine_weights`), or None to run without guidance, at half the cost.
      temperature: float32 [], above 0; None is greedy (the most likely token, whatever the key).

    Returns:
      int32 [B, T], in row-major grid order whatever the scan order.
    """
    batch = labels.shape[0]
    keys = row_keys(key, rows)
    if guidance_weights is not None:
        labels = jnp.concatenate([labels, jnp.full_like(labels, model.null_class)])

    def choose(t, logits):
        if guidance_weights is not None:
            logits = guide(logits[:batch], logits[batch:], guidance_weights[t])
        return choose_token(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t), logits, temperature)

    def every_row(value):
        return jnp.broadcast_to(value, labels.shape)

    def step(carry, t):
        token, caches = carry
        token = jnp.tile(token, labels.shape[0] // batch)
        logits, caches = decode_step(
            model, params, caches, labels, t, token, every_row(order[t]), every_row(order[t + 1])
        )
        token = choose(t + 1, logits)
        return (token, caches), token

    logits, caches = prefill(model, params, labels, every_row(order[0]))
    first = choose(0, logits)
    _, others = jax.lax.scan(step, (first, caches), jnp.arange(model.num_tokens - 1))
    visited = jnp.concatenate([first[None], others]).T
    return jnp.zeros_like(visited).at[:, order].set(visited)
