"""The decode loop: one token a pass or a group of tokens, in any order, with a static KV cache.

A pass reads every weight once, which bounds its time if there are few sequences. So the modulations, which hold a third
of the weights and depend on the class and the place alone, are computed outside the loop, one segment of passes at a
time. What attention reads of the cache grows from segment to segment: with four stages it is five eighths of the full
length on average. On a CPU the cache itself grows. Elsewhere it has its full length from the start, which saves copies.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rar_jax.models.rar import RAR
from rar_jax.models.sizes import PREFIX
from rar_jax.orders import row_keys
from rar_jax.orders.drawn import known_first, random_orders, spread_orders
from rar_jax.performance.costs import block_kernels
from rar_jax.sampling.cached import Cache, CachedNetwork, DecodeParams, grow
from rar_jax.sampling.choose import Choice, choose_token
from rar_jax.sampling.groups import Plan, Segment, segments
from rar_jax.sampling.guidance import guide
from rar_jax.sampling.own_pace import Pace, decode_at_own_pace

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
    all_segments = decode_segments(model, network.sequences, sizes)
    longest = max((segment.length for segment in all_segments), default=0)
    for segment in all_segments:
        length = longest if network.reads_parts_of_caches else segment.length
        state = state._replace(caches=[grow(cache, length) for cache in state.caches])
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
    state = state._replace(tokens=tokens)
    full = bool((segment.sizes == width).all())
    places = PREFIX + segment.counts[:, None] + np.arange(width)
    modulation = network.modulate(jnp.asarray(places.ravel()))
    by_pass = jax.tree.map(lambda m: m.reshape(m.shape[0], passes, width, m.shape[2]).swapaxes(0, 1), modulation)

    def step(state, inputs):
        count, size, modulation = inputs
        size = width if full else size
        logits, caches = network.read_group(state.tokens, count, size, state.caches, segment.length, modulation)
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


def token_keys(keys: jax.Array, t: jax.Array) -> jax.Array:
    """Returns the keys [B, G] of tokens number t int32 [G], from the keys [B] of their images."""
    return jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(0, None))(keys, t)


def image_orders(
    model: RAR, key: jax.Array, numbers: jax.Array, order: jax.Array | None, plan: Plan, known: jax.Array | None = None
) -> jax.Array:
    """Returns the order of each image, int32 [B, T].

    Args:
      model: the network.
      key, numbers, order, plan: see `decode`.
      known: bool [B, T], positions that are not drawn; None if all are. They come first, in row-major order.
    """
    config, shape = model.config, (numbers.shape[0], model.config.num_tokens)
    given = jnp.zeros(shape, bool) if known is None else known
    if plan.drawn_order is None:
        orders = jnp.broadcast_to(order, shape)
    elif plan.drawn_order == "random":
        orders = random_orders(key, numbers, config.num_tokens)
    else:
        orders = spread_orders(key, numbers, config.grid_side, plan.sizes, given)
    return orders if known is None else known_first(orders, given)


def decode(
    model: RAR,
    params: DecodeParams,
    labels: jax.Array,
    key: jax.Array,
    numbers: jax.Array,
    order: jax.Array | None,
    weights: jax.Array | None,
    choice: Choice,
    plan: Plan | None = None,
) -> tuple[jax.Array, Pace | None]:
    """Samples the tokens of a batch of images. Pure; to be jitted with `model` and `plan` static.

    Args:
      model: the network.
      params: from `sampling.cached.prepare`.
      labels: int32 [B], classes 0..C-1 (or C for unconditional images).
      key: a typed PRNG key [], the same for the whole job.
      numbers: int32 [B], each image's number in the job. Its draws depend on (key, number, t) alone, so that an image
        does not depend on its batch.
      order: int32 [T], the scan order; None if the plan draws orders.
      weights: float32 [T], the guidance weight of each token; None decodes without guidance, at half the cost.
      choice: how tokens are drawn.
      plan: the groups of tokens that are drawn from one pass; by default one token each, in the given order.

    Returns:
      int32 [B, T], in row-major grid order whatever the scan order; and how the images advanced, if they are verified.
    """
    plan = plan or Plan((1,) * model.config.num_tokens)
    orders = image_orders(model, key, numbers, order, plan)
    keys = row_keys(key, numbers)
    if plan.verify:
        none_known = jnp.zeros(labels.shape, jnp.int32)
        network = CachedNetwork(model, params, labels, orders, weights is not None)
        visited, pace = decode_at_own_pace(
            network, jnp.zeros_like(orders), none_known, plan, keys, _guided(weights), choice, all_unknown=True
        )
        return in_grid_order(visited, orders), pace

    def choose(t, logits):
        logits = _guided(weights)(t[None], logits)
        codes = choose_token(token_keys(keys, t).reshape(-1), logits.reshape(-1, logits.shape[-1]), choice)
        tokens = codes.reshape(labels.shape[0], -1)
        return tokens, tokens

    visited = run_loop(model, params, labels, orders, choose, weights is not None, plan.sizes)
    return in_grid_order(visited, orders), None


def edit(
    model: RAR,
    params: DecodeParams,
    labels: jax.Array,
    key: jax.Array,
    numbers: jax.Array,
    order: jax.Array | None,
    weights: jax.Array | None,
    choice: Choice,
    plan: Plan,
    tokens: jax.Array,
    masked: jax.Array,
) -> tuple[jax.Array, Pace]:
    """Draws the masked tokens of images again, given the others. Pure; to be jitted with `model` and `plan` static.

    One program serves every mask: the known tokens are read in one pass, and the loop begins at the first masked one.

    Args:
      model, params, labels, key, numbers, order, weights, choice, plan: see `decode`. The groups have one size.
      tokens: int32 [B, T], in grid order.
      masked: bool [B, T], the tokens to draw.

    Returns:
      int32 [B, T], in grid order, the tokens that are not masked unchanged; and how the images advanced.
    """
    orders = image_orders(model, key, numbers, order, plan, ~masked)
    network = CachedNetwork(model, params, labels, orders, weights is not None)
    visited, pace = decode_at_own_pace(
        network,
        jnp.take_along_axis(tokens, orders, axis=1),
        (~masked).sum(axis=1),
        plan,
        row_keys(key, numbers),
        _guided(weights),
        choice,
        all_unknown=False,
    )
    return in_grid_order(visited, orders), pace


def _guided(weights: jax.Array | None) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns (numbers of tokens [B or 1, N], logits [R, N, V]) -> guided logits [B, N, V]."""

    def guided(t, logits):
        if weights is None:
            return logits
        conditional, null = jnp.split(logits, 2)
        return guide(conditional, null, weights[t][..., None])

    return guided


def in_grid_order(visited: jax.Array, orders: jax.Array) -> jax.Array:
    """Puts tokens int32 [B, T] in the order visited into row-major grid order."""
    return jax.vmap(lambda tokens, order: jnp.zeros_like(tokens).at[order].set(tokens))(visited, orders)
