"""Decoding in which images advance at their own pace: verified groups, and images of which some tokens are known.

Verification is speculative sampling (Leviathan et al., 2023), for any order as in sigma-GPT (Pannatier et al., 2024).
The branches of one token are drawn independently of each other. The next pass reads them in order, and so computes the
conditional distribution of each given the ones before. A drafted token x is accepted with probability
min(1, p(x) / q(x)), where p is its conditional distribution and q the one that it was drawn from. The first refused
token is drawn again from max(0, p - q), and those behind it are dropped. The images then have the distribution of one
token per pass.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rar_jax.sampling.cached import Cache, grow, window
from rar_jax.sampling.choose import token_probabilities
from rar_jax.sampling.drawing import Drawing
from rar_jax.sampling.groups import Plan
from rar_jax.sampling.pace import Pace

# Folded into an image's key beside the number of a token, for its acceptance and for its second draw.
_ACCEPTANCE_STREAM = 2**30
_RESIDUAL_STREAM = 2**30 + 2**29


class OwnPaceState(NamedTuple):
    """What the loop carries. The group of an image, tokens number count .. count + size - 1, is not read yet.

    Attributes:
      visited: int32 [B, T + 2G], the tokens in the order visited. The first entry stands for the class token.
      count: int32 [B], from -1.
      size: int32 [B], from 1 to G, or 0 after the last group was read and all of it accepted; see `is_done`.
      drafted: float32 [B, G, V], the distributions that the tokens of the group were drawn from.
      caches: one for each block.
      pace: so far.
    """

    visited: jax.Array
    count: jax.Array
    size: jax.Array
    drafted: jax.Array
    caches: list[Cache]
    pace: Pace


def _accept(
    drawing: Drawing, t: jax.Array, tokens: jax.Array, p: jax.Array, q: jax.Array, size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Accepts or refuses the tokens of a group.

    Args:
      drawing: the images.
      t: int32 [B, G], the numbers of the tokens.
      tokens: int32 [B, G].
      p, q: float32 [B, G, V]; p of the first token is not used.
      size: int32 [B].

    Returns:
      How many tokens are accepted, int32 [B] from 1 to size; and the token to put in place of the first refused one,
      int32 [B].
    """
    width = tokens.shape[1]
    likelihood = [jnp.take_along_axis(each, tokens[..., None], axis=-1)[..., 0] for each in (p, q)]
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(drawing.token_keys(t + _ACCEPTANCE_STREAM))
    taken = uniform * likelihood[1] < likelihood[0]
    taken = taken.at[:, 0].set(True) & (jnp.arange(width) < size[:, None])
    accepted = jnp.cumprod(taken, axis=1).sum(axis=1)
    refused = jnp.minimum(accepted, width - 1)
    p, q = (window(each, refused, 1)[:, 0] for each in (p, q))
    residual = jnp.maximum(p - q, 0)
    # Rounding may leave nothing.
    residual = jnp.where(residual.sum(axis=-1, keepdims=True) > 0, residual, p)
    residual_keys = drawing.token_keys(window(t, refused, 1) + _RESIDUAL_STREAM)[:, 0]
    return accepted, jax.vmap(jax.random.categorical)(residual_keys, jnp.log(residual)).astype(tokens.dtype)


class _Pass(NamedTuple):
    """What a pass of the network gives.

    Attributes:
      tokens: int32 [B, G], the groups that it read.
      p: float32 [B, G, V], the conditional distribution of each token of the group; the first one is not used.
      q: float32 [B, G, V], the distributions of the next G tokens.
      logits: float32 [B, G, V], their guided logits.
      caches: one for each block.
    """

    tokens: jax.Array
    p: jax.Array
    q: jax.Array
    logits: jax.Array
    caches: list[Cache]


def _read_groups(drawing: Drawing, state: OwnPaceState) -> _Pass:
    """Reads the group of each image."""
    width = state.drafted.shape[1]
    tokens = window(state.visited, state.count + 1, width)
    logits, caches = drawing.network.read_groups(tokens, state.count, state.size, state.caches)
    # Row i < G predicts token i + 1 of the group, and the others are branches of its last token.
    places = jnp.arange(width)
    predicted = [state.count[:, None] + 1 + places, (state.count + state.size)[:, None] + places[1:]]
    logits = drawing.guide(jnp.concatenate(predicted, axis=1), logits)
    probabilities = token_probabilities(logits.reshape(-1, logits.shape[-1]), drawing.choice).reshape(logits.shape)
    q, logits = (
        jnp.concatenate([window(each, state.size - 1, 1), each[:, width:]], axis=1) for each in (probabilities, logits)
    )
    p = jnp.concatenate([state.drafted[:, :1], probabilities[:, : width - 1]], axis=1)
    return _Pass(tokens, p, q, logits, caches)


def _count(pace: Pace, size: jax.Array, accepted: jax.Array, finished: jax.Array) -> Pace:
    """Counts a pass, and the tokens that it examined, of the images that are not finished."""
    place = jnp.arange(pace.examined.shape[1])
    examined = (place > 0) & (place < size[:, None]) & (place <= accepted[:, None]) & ~finished[:, None]
    return Pace(
        pace.passes + ~finished, pace.examined + examined, pace.accepted + (examined & (place < accepted[:, None]))
    )


def _advance(
    state: OwnPaceState, result: _Pass, drawn: jax.Array, accepted: jax.Array, other: jax.Array
) -> OwnPaceState:
    """Moves each image on by the tokens that were accepted.

    Args:
      state: before the pass.
      result: of the pass.
      drawn: int32 [B, G], the next group, of images whose group was accepted as a whole.
      accepted: int32 [B], how many tokens of the group are accepted.
      other: int32 [B], in place of the first refused token. It becomes a group of its own.
    """
    width = drawn.shape[1]
    num_tokens = state.visited.shape[1] - 1 - 2 * width
    whole, count = accepted == state.size, state.count + accepted
    size = jnp.where(whole, jnp.minimum(width, num_tokens - count), 1)
    written = jnp.where(whole[:, None], drawn, other[:, None])
    update = jax.vmap(lambda row, new, start: jax.lax.dynamic_update_slice_in_dim(row, new, start, axis=0))
    visited = update(state.visited, written, count + 1)
    return state._replace(visited=visited, count=count, size=size, drafted=result.q, caches=result.caches)


def decode_at_own_pace(drawing: Drawing, plan: Plan) -> tuple[jax.Array, Pace]:
    """Draws the tokens of B images that are not known, in groups of G.

    Args:
      drawing: the images, each in its order, known tokens first.
      plan: the size of the groups, G = max(plan.sizes), and whether to verify them.

    Returns:
      int32 [B, T] in the order visited, and how the images advanced.
    """
    state = run_at_own_pace(drawing, plan, begin_at_own_pace(drawing, plan))
    return state.visited[:, 1 : drawing.orders.shape[1] + 1], state.pace


def begin_at_own_pace(drawing: Drawing, plan: Plan) -> OwnPaceState:
    """Reads the known tokens. See `decode_at_own_pace` for the arguments."""
    network, (visited, known) = drawing.network, drawing.known_tokens()
    batch, num_tokens = visited.shape
    width = max(plan.sizes)
    length = num_tokens + 1 + 2 * width
    if drawing.all_unknown:
        _, caches = network.prefill(1)
        caches = [grow(cache, length) for cache in caches]
    else:
        _, caches = network.read_all(visited, length)
    counts = jnp.zeros((batch, width), jnp.int32)
    return OwnPaceState(
        visited=jnp.pad(visited, ((0, 0), (1, 2 * width))),
        # The last known token is the first group, or the class token.
        count=known.astype(jnp.int32) - 1,
        size=jnp.ones(batch, jnp.int32),
        drafted=jnp.zeros((batch, width, network.codebook_size)),
        caches=caches,
        pace=Pace(jnp.zeros(batch, jnp.int32), counts, counts),
    )


def is_done(state: OwnPaceState, plan: Plan) -> jax.Array:
    """Returns which images are finished: bool [B]."""
    num_tokens = state.visited.shape[1] - 1 - 2 * max(plan.sizes)
    # The last group has to be read only if it is to be verified.
    unread = (state.size > 1) & plan.verify
    return (state.count + state.size == num_tokens) & ~unread


def run_at_own_pace(drawing: Drawing, plan: Plan, state: OwnPaceState, passes: jax.Array | None = None) -> OwnPaceState:
    """Runs passes until all images are finished.

    Args:
      drawing, plan: see `decode_at_own_pace`.
      state: how far the images are.
      passes: int32 [], the largest number of passes to run; None for no limit.
    """
    width = max(plan.sizes)

    def step(state: OwnPaceState) -> OwnPaceState:
        result = _read_groups(drawing, state)
        place = jnp.arange(width)
        accepted, other = state.size, result.tokens[:, 0]
        if plan.verify:
            numbers = state.count[:, None] + place
            accepted, other = _accept(drawing, numbers, result.tokens, result.p, state.drafted, state.size)
        drawn = drawing.choose((state.count + state.size)[:, None] + place, result.logits)
        finished = is_done(state, plan)
        new = _advance(state, result, drawn, accepted, other)
        # A finished image keeps its tokens while others advance.
        return new._replace(
            visited=jnp.where(finished[:, None], state.visited, new.visited),
            count=jnp.where(finished, state.count, new.count),
            size=jnp.where(finished, state.size, new.size),
            pace=_count(state.pace, state.size, accepted, finished),
        )

    if passes is None:
        return jax.lax.while_loop(lambda state: ~is_done(state, plan).all(), step, state)
    return jax.lax.while_loop(
        lambda carried: (carried[0] < passes) & ~is_done(carried[1], plan).all(),
        lambda carried: (carried[0] + 1, step(carried[1])),
        (jnp.int32(0), state),
    )[1]
