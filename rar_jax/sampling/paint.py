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
from rar_jax.parallel.mesh import AXES, fetch
from rar_jax.sampling.decode import State, begin_loop, begin_segment, decode_segments, run_passes, token_drawing
from rar_jax.sampling.drawing import Batch, Drawing
from rar_jax.sampling.groups import Plan, Segment
from rar_jax.sampling.options import Options
from rar_jax.sampling.own_pace import OwnPaceState, begin_at_own_pace, run_at_own_pace
from rar_jax.sampling.sampler import Sampler, jit_image_orders

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


def _shown(drawing: Drawing, visited: jax.Array, drawn: jax.Array) -> Shown:
    """Returns what is shown of tokens [B, >= T] in the order visited. The first `drawn` [] or [B] are known."""
    places = jnp.arange(drawing.orders.shape[1])
    known = jnp.broadcast_to(places < drawn[..., None], drawing.orders.shape)
    return drawing.in_grid_order(visited[:, : len(places)]), drawing.in_grid_order(known)


def _begin(drawing: Drawing, plan: Plan) -> tuple[State, Shown]:
    state = begin_loop(drawing.network, plan.sizes, token_drawing(drawing))
    return state, _shown(drawing, state.kept, jnp.int32(plan.sizes[0]))


def _segments(drawing: Drawing, plan: Plan) -> list[Segment]:
    return decode_segments(drawing.network.model, drawing.network.sequences, plan.sizes)


def _begin_segment(drawing: Drawing, plan: Plan, number: int, state: State) -> State:
    return begin_segment(drawing.network, _segments(drawing, plan), number, state)


def _run(
    drawing: Drawing, plan: Plan, number: int, state: State, first: jax.Array, last: jax.Array
) -> tuple[State, Shown]:
    segment = _segments(drawing, plan)[number]
    state = run_passes(drawing.network, segment, state, token_drawing(drawing), first, last)
    # The last pass reads a group and draws the next one.
    drawn = np.cumsum(plan.sizes)
    after = drawn[np.searchsorted(drawn, segment.counts + segment.sizes) + 1]
    return state, _shown(drawing, state.kept, jnp.asarray(after, jnp.int32)[last - 1])


def _shown_at_own_pace(drawing: Drawing, plan: Plan, state: OwnPaceState) -> Shown:
    # Verification may replace the tokens of a group except the first one.
    return _shown(drawing, state.visited[:, 1:], state.count + (1 if plan.verify else state.size))


def _begin_at_own_pace(drawing: Drawing, plan: Plan) -> tuple[OwnPaceState, Shown]:
    state = begin_at_own_pace(drawing, plan)
    return state, _shown_at_own_pace(drawing, plan, state)


def _run_at_own_pace(
    drawing: Drawing, plan: Plan, state: OwnPaceState, passes: jax.Array
) -> tuple[OwnPaceState, Shown]:
    state = run_at_own_pace(drawing, plan, state, passes)
    return state, _shown_at_own_pace(drawing, plan, state)


@functools.cache
def _jit(function: Callable, model: RAR, mesh: Mesh, *static: Any) -> Callable[..., Any]:
    """Jits one of the functions above on a mesh, where each device has its own images (`sampler.jit_decode`).

    A function that runs passes writes into the caches that it is given.
    """
    own, shared = PartitionSpec(AXES), PartitionSpec()

    def run(params, images, options, state, numbers):
        return function(Drawing(model, params, *images, options), *static, *state, *numbers)

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
    """Draws the tokens of a batch as `Sampler.decode` does, and yields after every few passes.

    A caller that stops iterating stops the work.

    Args:
      sampler: the model.
      labels, numbers, seed, options, edited: see `Sampler.decode`.
      every: number of passes after which to yield, at least 1.

    Yields:
      How far the images are. The last one has all tokens.

    Raises:
      UserError: see `Sampler.decode`; or `every` is not positive.
    """
    if every < 1:
        raise UserError(f"every={every} must be at least 1")
    traced = options.traced(sampler.model.config, seed)
    plan = options.plan(sampler.model.config, one_size=edited is not None)
    batch = Batch(labels, numbers, *(edited or ()))
    orders = fetch(jit_image_orders(sampler.model, batch, traced, plan))
    # One program serves all orders.
    traced, plan = traced._replace(order=None), plan._replace(drawn_order=None)
    images = sampler.put((batch, orders))

    def call(function, static=(), state=(), numbers=()):
        program = _jit(function, sampler.model, sampler.mesh, plan, *static)
        return program(sampler.params, images, traced, state, numbers)

    if plan.verify or edited is not None:
        chunks = _chunks_at_own_pace(call, every)
    else:
        sequences = (2 if options.guided else 1) * len(labels) // sampler.mesh.size
        passes = [len(segment.counts) for segment in decode_segments(sampler.model, sequences, plan.sizes)]
        chunks = _chunks(call, passes, every)
    for tokens, known in chunks:
        yield Painted(fetch(tokens), fetch(known), orders)


def _chunks(call: Callable, passes: list[int], every: int) -> Iterator[Shown]:
    """Draws images that advance together, in segments of these numbers of passes."""
    state, shown = call(_begin)
    yield shown
    for number, last in enumerate(passes):
        state = call(_begin_segment, (number,), (state,))
        for first in range(0, last, every):
            state, shown = call(_run, (number,), (state,), (first, min(first + every, last)))
            yield shown


def _chunks_at_own_pace(call: Callable, every: int) -> Iterator[Shown]:
    """Draws images that advance at their own pace, until all tokens are known."""
    state, shown = call(_begin_at_own_pace)
    yield shown
    while not fetch(shown[1]).all():
        state, shown = call(_run_at_own_pace, (), (state,), (every,))
        yield shown
