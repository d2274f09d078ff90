"""The decode loop: one token a pass or a group of tokens, in any order, with a static KV cache.

A pass reads every weight once, which bounds its time if there are few sequences. So the modulations, which hold a third
of the weights and depend on the class and the place alone, are computed outside the loop, one segment of passes at a
time. The cache grows from segment to segment: with four stages, attention reads five eighths of its full length on
average.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rar_jax.models.rar import RAR
from rar_jax.models.sizes import PREFIX
from rar_jax.orders import row_keys
from rar_jax.performance.costs import block_kernels
from rar_jax.sampling.cached import Cache, CachedNetwork, DecodeParams
from rar_jax.sampling.choose import Choice, choose_token
from rar_jax.sampling.groups import Segment, segments
from rar_jax.sampling.guidance import guide

# A stage with fewer tokens saves less time than it takes to compile.
_STAGE_TOKENS = 32


class State(NamedTuple):
    """What the loop carries from pass to pass.

    Attributes:
      tokens: int32 [B, W], the group drawn last, padded.
      caches: one for each block.
    """

    tokens: jax.Array
    caches: list[Cache]


def _num_stages(model: RAR, sequences: int) -> int:
    """Returns the number of cache lengths, from the cache's share of the bytes that a pass reads.

    The loop is compiled once for each. Four stages save 3/8 of the reads of a full cache, and eight save 7/16.
    """
    cache = 2 * sequences * model.config.num_tokens * model.config.width
    kernels = block_kernels(model.config)
    wanted = 2 if 4 * cache < kernels else 4 if cache < 2 * kernels else 8
    return min(wanted, max(1, model.config.num_tokens // _STAGE_TOKENS))


def decode_segments(model: RAR, sequences: int, sizes: tuple[int, ...]) -> list[Segment]:
    """Returns the segments of a decode: stages of nearly equal numbers of tokens, divided where widths change."""
    count = _num_stages(model, sequences)
    return segments(sizes, [model.config.num_tokens * i // count for i in range(1, count + 1)])


def _grow(cache: Cache, length: int) -> Cache:
    """Makes a cache `length` places long. What is cut off are branches, which nothing reads again."""
    length_now = cache.k.shape[2]
    return Cache(
        *(jnp.pad(x[:, :, :length], ((0, 0), (0, 0), (0, max(0, length - length_now)), (0, 0))) for x in cache)
    )


def run_loop(
    model: RAR,
    params: DecodeParams,
    labels: jax.Array,
    orders: jax.Array,
    choose: Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]],
    guided: bool,
    sizes: tuple[int, ...] | None = None,
) -> Any:
    """Decodes all tokens of B images, each in its own order.

    Args:
      model, params, labels, orders, guided: see `CachedNetwork`.
      choose: (t int32 [G], logits float32 [R, G, V] of the tokens of these numbers) -> (the tokens int32 [B, G], values
        [..., G, ...] to keep, with G as their second axis). Numbers of T or more are padding.
      sizes: of the groups; one token each by default.

    Returns:
      The values that `choose` kept, with T in place of G.
    """
    sizes = sizes or (1,) * model.config.num_tokens
    network = CachedNetwork(model, params, labels, orders, guided)
    logits, caches = network.prefill(sizes[0])
    tokens, value = choose(jnp.arange(sizes[0]), logits)
    state, kept = State(tokens, caches), [value]
    for segment in decode_segments(model, network.sequences, sizes):
        state, values = _run_segment(network, segment, state, choose)
        kept.append(values)
    real = _kept_tokens(sizes, model, network.sequences)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1)[:, real], *kept)


def _run_segment(
    network: CachedNetwork, segment: Segment, state: State, choose: Callable[[jax.Array, jax.Array], tuple]
) -> tuple[State, Any]:
    """Runs the passes of a segment: the state after them, and the values that `choose` kept, [..., passes * W, ...]."""
    width, passes = segment.width, len(segment.counts)
    tokens = jnp.pad(state.tokens, ((0, 0), (0, width - state.tokens.shape[1])))
    state = State(tokens, [_grow(cache, segment.length) for cache in state.caches])
    full = bool((segment.sizes == width).all())
    places = PREFIX + segment.counts[:, None] + np.arange(width)
    modulation = network.modulate(jnp.asarray(places.ravel()))
    by_pass = jax.tree.map(lambda m: m.reshape(m.shape[0], passes, width, m.shape[2]).swapaxes(0, 1), modulation)

    def step(state, inputs):
        count, size, modulation = inputs
        size = width if full else size
        logits, caches = network.read_group(state.tokens, count, size, state.caches, modulation)
        tokens, value = choose(count + size + jnp.arange(width), logits)
        return State(tokens, caches), value

    counts, sizes = (jnp.asarray(each, jnp.int32) for each in (segment.counts, segment.sizes))
    state, values = jax.lax.scan(step, state, (counts, sizes, by_pass))
    # [passes, rows, W, ...] -> [rows, passes * W, ...].
    return state, jax.tree.map(lambda v: v.swapaxes(0, 1).reshape(v.shape[1], passes * width, *v.shape[3:]), values)


def _kept_tokens(sizes: tuple[int, ...], model: RAR, sequences: int) -> np.ndarray:
    """Returns which of the drawn tokens, padding included, are tokens: int [T]."""
    real = [np.ones(sizes[0], bool)]
    for segment in decode_segments(model, sequences, sizes):
        drawn = segment.counts + segment.sizes
        drawn_sizes = np.asarray(sizes)[np.searchsorted(np.cumsum(sizes), drawn, side="right")]
        real += [np.arange(segment.width) < size for size in drawn_sizes]
    return np.flatnonzero(np.concatenate(real))


# Folded into an image's key for its random order. The image's tokens fold in 0..T-1.
_ORDER_STREAM = 2**31 - 1


def random_orders(model: RAR, key: jax.Array, numbers: jax.Array) -> jax.Array:
    """Draws a uniformly random order for each image, int32 [B, T], from (key, number) alone; see `decode`."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys(key, numbers), _ORDER_STREAM)
    return jax.vmap(jax.random.permutation, in_axes=(0, None))(keys, model.config.num_tokens).astype(jnp.int32)


def token_keys(keys: jax.Array, t: jax.Array) -> jax.Array:
    """Returns the keys [B, G] of tokens t int32 [G], from the keys [B] of their images."""
    fold_in = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(0, None))
    return fold_in(keys, t)


def decode(
    model: RAR,
    params: DecodeParams,
    labels: jax.Array,
    key: jax.Array,
    numbers: jax.Array,
    order: jax.Array | None,
    weights: jax.Array | None,
    choice: Choice,
    sizes: tuple[int, ...] | None = None,
) -> jax.Array:
    """Samples the tokens of a batch of images. Pure; to be jitted with `model` and `sizes` static.

    Args:
      model: the network.
      params: from `sampling.cached.prepare`.
      labels: int32 [B], classes 0..C-1 (or C for unconditional images).
      key: a typed PRNG key [], the same for the whole job.
      numbers: int32 [B], each image's number in the job. Its draws depend on (key, number, t) alone, so that an image
        does not depend on its batch.
      order: int32 [T], the scan order; None gives each image a random order.
      weights: float32 [T], the guidance weight of each token; None decodes without guidance, at half the cost.
      choice: how tokens are drawn.
      sizes: sizes of the groups of tokens that are drawn from one pass (`sampling.groups`); one token each by default.

    Returns:
      int32 [B, T], in row-major grid order whatever the scan order.
    """
    batch = labels.shape[0]
    keys = row_keys(key, numbers)

    def choose(t, logits):
        if weights is not None:
            logits = guide(logits[:batch], logits[batch:], weights[t][:, None])
        codes = choose_token(token_keys(keys, t).reshape(-1), logits.reshape(-1, logits.shape[-1]), choice)
        tokens = codes.reshape(batch, -1)
        return tokens, tokens

    if order is None:
        orders = random_orders(model, key, numbers)
    else:
        orders = jnp.broadcast_to(order, (batch, model.config.num_tokens))
    visited = run_loop(model, params, labels, orders, choose, weights is not None, sizes)
    return jax.vmap(lambda tokens, order: jnp.zeros_like(tokens).at[order].set(tokens))(visited, orders)
