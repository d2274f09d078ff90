"""Draws a batch of images some passes at a time, so that they can be shown while they are drawn.

The passes are those of `sampling.decode`, and so are the tokens. What the loop carries stays on the devices from one
chunk of passes to the next one. A loop is compiled once for all lengths of chunks, and for all orders, because the
numbers of the passes and the orders are its arguments.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rar_jax.errors import UserError
from rar_jax.models.rar import RAR
from rar_jax.orders import row_keys
from rar_jax.parallel.mesh import AXES, fetch
from rar_jax.sampling.cached import CachedNetwork, DecodeParams
from rar_jax.sampling.choose import Choice
from rar_jax.sampling.decode import (
    State,
    begin_loop,
    begin_segment,
    decode_segments,
    guided,
    in_grid_order,
    run_passes,
    token_drawing,
)
from rar_jax.sampling.groups import Plan, Segment
from rar_jax.sampling.options import Options
from rar_jax.sampling.own_pace import OwnPaceState, begin_at_own_pace, run_at_own_pace
from rar_jax.sampling.sampler import Sampler, jit_image_orders, seed_key

# Tokens int32 [B, T] in grid order, and which of them are known, bool [B, T].
Shown = tuple[jax.Array, jax.Array]


class Painted(NamedTuple):
    """How far a batch of images is.

    Attributes:
      tokens: int32 [B, T], codes in row-major grid order. Those that are not known have no meaning.
      known: bool [B, T], the tokens that are drawn, or were known from the beginning.
      orders: int32 [B, T], each image's positions in the order visited. The known ones come first.
    """

    tokens: np.ndarray
    known: np.ndarray
    orders: np.ndarray


class _Draw:
    """The images of a batch and how their tokens are drawn, inside a compiled program."""

    def __init__(
        self,
        model: RAR,
        params: DecodeParams,
        images: dict[str, jax.Array],
        key: jax.Array,
        weights: jax.Array | None,
        choice: Choice,
    ):
        """Prepares to draw the tokens of a batch.

        Args:
          model, params, key, weights, choice: see `decode.decode`.
          images: `labels`, `numbers` and `orders`, int32 [B, T]; for `decode.edit` also `tokens` and `masked`.
        """
        self.model, self.images, self.weights, self.choice = model, images, weights, choice
        self.network = CachedNetwork(model, params, images["labels"], images["orders"], weights is not None)
        self.keys = row_keys(key, images["numbers"])

    def shown(self, visited: jax.Array, drawn: jax.Array) -> Shown:
        """Returns what is shown of tokens [B, >= T] in the order visited. The first `drawn` [] or [B] are known."""
        orders = self.images["orders"]
        known = jnp.broadcast_to(jnp.arange(orders.shape[1]) < drawn[..., None], orders.shape)
        return in_grid_order(visited[:, : orders.shape[1]], orders), in_grid_order(known, orders)


def _begin(draw: _Draw, plan: Plan, state: None) -> tuple[State, Shown]:
    state = begin_loop(draw.network, plan.sizes, token_drawing(draw.keys, draw.weights, draw.choice))
    return state, draw.shown(state.kept, jnp.int32(plan.sizes[0]))


def _segments(draw: _Draw, plan: Plan) -> list[Segment]:
    return decode_segments(draw.model, draw.network.sequences, plan.sizes)


def _begin_segment(draw: _Draw, plan: Plan, number: int, state: State) -> State:
    return begin_segment(draw.network, _segments(draw, plan), number, state)


def _run(draw: _Draw, plan: Plan, number: int, state: State, first: jax.Array, last: jax.Array) -> tuple[State, Shown]:
    segment = _segments(draw, plan)[number]
    choose = token_drawing(draw.keys, draw.weights, draw.choice)
    state = run_passes(draw.network, segment, state, choose, first, last)
    # The last pass reads a group and draws the next one.
    drawn = np.cumsum(plan.sizes)
    after = drawn[np.searchsorted(drawn, segment.counts + segment.sizes) + 1]
    return state, draw.shown(state.kept, jnp.asarray(after, jnp.int32)[last - 1])


def _shown_at_own_pace(draw: _Draw, plan: Plan, state: OwnPaceState) -> Shown:
    # Verification may replace the tokens of a group except the first one.
    return draw.shown(state.visited[:, 1:], state.count + (1 if plan.verify else state.size))


def _begin_at_own_pace(draw: _Draw, plan: Plan, state: None) -> tuple[OwnPaceState, Shown]:
    orders = draw.images["orders"]
    if "masked" in draw.images:
        visited = jnp.take_along_axis(draw.images["tokens"], orders, axis=1)
        known = (~draw.images["masked"]).sum(axis=1)
    else:
        visited, known = jnp.zeros_like(orders), jnp.zeros(orders.shape[0], jnp.int32)
    state = begin_at_own_pace(draw.network, visited, known, plan, "masked" not in draw.images)
    return state, _shown_at_own_pace(draw, plan, state)


def _run_at_own_pace(draw: _Draw, plan: Plan, state: OwnPaceState, passes: jax.Array) -> tuple[OwnPaceState, Shown]:
    state = run_at_own_pace(draw.network, plan, state, draw.keys, guided(draw.weights), draw.choice, passes)
    return state, _shown_at_own_pace(draw, plan, state)


@functools.cache
def _jit(function: Callable, model: RAR, mesh: Mesh, *static: Any) -> Callable[..., Any]:
    """Jits one of the functions above on a mesh, where each device has its own images (`sampler.jit_on_own_images`).

    A function that runs passes writes into the caches that it is given.
    """
    own, shared = PartitionSpec(AXES), PartitionSpec()

    def run(params, images, rest, state, numbers):
        return function(_Draw(model, params, images, **rest), *static, state, *numbers)

    specs = {"in_specs": (shared, own, shared, own, shared), "out_specs": own}
    donated = (3,) if function in (_run, _run_at_own_pace) else ()
    return jax.jit(jax.shard_map(run, mesh=mesh, check_vma=False, **specs), donate_argnums=donated)


def paint(
    sampler: Sampler,
    labels: np.ndarray,
    numbers: np.ndarray,
    seed: int,
    options: Options,
    every: int,
    edited: tuple[np.ndarray, np.ndarray] | None = None,
) -> Iterator[Painted]:
    """Draws the tokens of a batch as `Sampler.decode` or `Sampler.edit` does, and yields after every few passes.

    A caller that stops iterating stops the work.

    Args:
      sampler: the model.
      labels, numbers, seed, options: see `Sampler.decode`.
      every: number of passes after which to yield, at least 1.
      edited: tokens int32 [B, T] in grid order and bool [B, T], which of them to draw; None to draw all.

    Yields:
      How far the images are. The last one has all tokens.

    Raises:
      UserError: see `Sampler.decode`; or `every` is not positive.
    """
    if every < 1:
        raise UserError(f"every={every} must be at least 1")
    arguments = options.arguments(sampler.model.config) | {"key": seed_key(seed)}
    plan = options.plan(sampler.model.config, one_size=edited is not None)
    images = {"labels": labels, "numbers": numbers}
    known = None
    if edited is not None:
        images |= {"tokens": edited[0], "masked": edited[1]}
        known = ~edited[1]
    order = arguments.pop("order")
    images["orders"] = fetch(jit_image_orders(sampler.model, arguments["key"], numbers, order, plan, known))
    plan = plan._replace(drawn_order=None)
    batch = sampler.put(images)

    def call(function, static, state, *traced):
        program = _jit(function, sampler.model, sampler.mesh, plan, *static)
        return program(sampler.params, batch, arguments, state, traced)

    if plan.verify or edited is not None:
        chunks = _chunks_at_own_pace(call, every)
    else:
        sequences = (2 if options.guided else 1) * len(labels) // sampler.mesh.size
        passes = [len(segment.counts) for segment in decode_segments(sampler.model, sequences, plan.sizes)]
        chunks = _chunks(call, passes, every)
    for tokens, known in chunks:
        yield Painted(fetch(tokens), fetch(known), images["orders"])


def _chunks(call: Callable, passes: list[int], every: int) -> Iterator[Shown]:
    """Draws images that advance together, in segments of these numbers of passes."""
    state, shown = call(_begin, (), None)
    yield shown
    for number, last in enumerate(passes):
        state = call(_begin_segment, (number,), state)
        for first in range(0, last, every):
            state, shown = call(_run, (number,), state, first, min(first + every, last))
            yield shown


def _chunks_at_own_pace(call: Callable, every: int) -> Iterator[Shown]:
    """Draws images that advance at their own pace, until all tokens are known."""
    state, shown = call(_begin_at_own_pace, (), None)
    yield shown
    while not fetch(shown[1]).all():
        state, shown = call(_run_at_own_pace, (), state, every)
        yield shown
