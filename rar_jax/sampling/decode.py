"""The decode loop: one token per pass or a group of tokens, in any order, with a static KV cache.

A pass reads every weight once, which bounds its time if there are few sequences. So the modulations, which hold a third
of the weights and depend on the class and the place alone, are computed outside the loop, one segment of passes at a
time. What attention reads of the cache grows from segment to segment: with four stages it is five eighths of the full
length on average. On a CPU the cache itself grows. Elsewhere it has its full length from the start, which saves copies.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rar_jax.models.rar import RAR
from rar_jax.models.sizes import PREFIX
from rar_jax.performance.costs import block_kernels
from rar_jax.sampling.cached import Cache, CachedNetwork, DecodeParams, Modulation, grow, window
from rar_jax.sampling.drawing import Batch, Drawing, image_orders
from rar_jax.sampling.groups import Plan, Segment, segments
from rar_jax.sampling.options import TracedOptions
from rar_jax.sampling.own_pace import decode_at_own_pace
from rar_jax.sampling.pace import Pace

# (t int32 [G], logits float32 [R, G, V] of the tokens of these numbers) -> the tokens int32 [B, G], and values
# [..., G, ...] to keep, with G as their second axis. Numbers of T or more are padding.
Choose = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]
# A stage with fewer tokens saves less time than it takes to compile.
_STAGE_TOKENS = 32


class State(NamedTuple):
    """What the loop carries from pass to pass. The first axis of every array belongs to the images or sequences.

    Attributes:
      tokens: int32 [B, W], the group drawn last, padded.
      caches: one for each block.
      modulation: at the places that the passes of a segment read, in their order; None before the first segment.
      kept: the values that `choose` kept, [..., T + padding, ...]. Entry t belongs to token number t, if it is drawn.
    """

    tokens: jax.Array
    caches: list[Cache]
    modulation: Modulation | None
    kept: Any


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


def run_loop(network: CachedNetwork, choose: Choose, sizes: tuple[int, ...]) -> Any:
    """Decodes all tokens of B images, each in its own order.

    Args:
      network: the network and the images.
      choose: how tokens are drawn from logits, and what is kept of them (`Choose`).
      sizes: of the groups, which sum to T.

    Returns:
      The values that `choose` kept, with T in place of G.
    """
    state, all_segments = begin_loop(network, sizes, choose), decode_segments(network.model, network.sequences, sizes)
    for number, segment in enumerate(all_segments):
        state = begin_segment(network, all_segments, number, state)
        state = run_passes(network, segment, state, choose, 0, len(segment.counts))
    return jax.tree.map(lambda kept: kept[:, : sum(sizes)], state.kept)


def begin_loop(network: CachedNetwork, sizes: tuple[int, ...], choose: Choose) -> State:
    """Draws the first group from the class token."""
    logits, caches = network.prefill(sizes[0])
    tokens, values = choose(jnp.arange(sizes[0]), logits)
    # A group is written with its padding, which the next one overwrites.
    length = sum(sizes) + max(sizes)
    kept = jax.tree.map(lambda v: jnp.pad(v, ((0, 0), (0, length - v.shape[1])) + ((0, 0),) * (v.ndim - 2)), values)
    return State(tokens, caches, None, kept)


def begin_segment(network: CachedNetwork, all_segments: list[Segment], number: int, state: State) -> State:
    """Prepares the state for the passes of a segment: wider groups, longer caches and the modulation."""
    segment = all_segments[number]
    tokens = jnp.pad(state.tokens, ((0, 0), (0, segment.width - state.tokens.shape[1])))
    longest = max(each.length for each in all_segments)
    length = longest if network.reads_parts_of_caches else segment.length
    places = PREFIX + segment.counts[:, None] + np.arange(segment.width)
    # The compiler would compute the modulations of all segments before the first one, and keep them all in memory.
    places, tokens = jax.lax.optimization_barrier((jnp.asarray(places.ravel()), tokens))
    modulation = network.modulate(places)
    return State(tokens, [grow(cache, length) for cache in state.caches], modulation, state.kept)


def run_passes(
    network: CachedNetwork,
    segment: Segment,
    state: State,
    choose: Choose,
    first: jax.Array | int,
    last: jax.Array | int,
) -> State:
    """Runs the passes of a segment from number `first` to before `last`, int32 [], which may be traced."""
    width, full = segment.width, bool((segment.sizes == segment.width).all())
    counts, sizes = (jnp.asarray(each, jnp.int32) for each in (segment.counts, segment.sizes))

    def step(i, carried):
        tokens, caches, kept = carried
        count, size = counts[i], width if full else sizes[i]
        modulation = jax.tree.map(lambda m: window(m, i * width, width), state.modulation)
        logits, caches = network.read_group(tokens, count, size, caches, segment.length, modulation)
        tokens, values = choose(count + size + jnp.arange(width), logits)
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=count + size, axis=1)
        return tokens, caches, jax.tree.map(write, kept, values)

    tokens, caches, kept = jax.lax.fori_loop(first, last, step, (state.tokens, state.caches, state.kept))
    return State(tokens, caches, state.modulation, kept)


def token_drawing(drawing: Drawing) -> Choose:
    """Returns the function by which the loop draws tokens and keeps them."""

    def choose(t, logits):
        tokens = drawing.choose(t, drawing.guide(t, logits))
        return tokens, tokens

    return choose


def decode(
    model: RAR, params: DecodeParams, batch: Batch, options: TracedOptions, plan: Plan
) -> tuple[jax.Array, Pace | None]:
    """Samples the tokens of a batch of images. Pure; to be jitted with `model` and `plan` static.

    One program serves every mask: the known tokens are read in one pass, and the loop begins at the first masked one.

    Args:
      model: the network.
      params: from `sampling.cached.prepare`.
      batch: the images.
      options: how tokens are drawn.
      plan: the groups of tokens that are drawn from one pass. If tokens are known, the groups have one size.

    Returns:
      int32 [B, T], in row-major grid order whatever the scan order, the known tokens unchanged; and how the images
      advanced, if they advance at their own pace: they are verified, or tokens are known.
    """
    drawing = Drawing(model, params, batch, image_orders(model, batch, options, plan), options)
    if drawing.all_unknown and not plan.verify:
        visited, pace = run_loop(drawing.network, token_drawing(drawing), plan.sizes), None
    else:
        visited, pace = decode_at_own_pace(drawing, plan)
    return drawing.in_grid_order(visited), pace
