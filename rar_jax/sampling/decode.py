"""The decode loop: one token a step through a static KV cache, in any scan order.

Dimension letters as in `models.rar`; R is the number of rows decoded, 2B with guidance (conditional ones first).

A step reads every weight once, which bounds its time where rows are few. So what depends on the class and the step
alone, the modulations with a third of the weights, is computed outside the loop, a stage of steps at a time; and the
cache grows from stage to stage, so that attention reads five eighths of its full length on average.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from rar_jax.models.rar import PREFIX, RAR, attention_weights, weighted_values
from rar_jax.orders import row_keys
from rar_jax.sampling.choose import choose_token
from rar_jax.sampling.guidance import guide

# The step loop is compiled once a stage.
_STAGES = 4

_TRANSPOSED = ("attention/qkv/kernel", "attention/proj/kernel", "mlp/fc1/kernel", "mlp/fc2/kernel")


@flax.struct.dataclass
class DecodeParams:
    """Parameters laid out for decoding.

    Attributes:
      outer: those outside the blocks, as the model has them.
      blocks: one tree a block. Slicing stacked arrays inside the loop would copy every weight at every step.
      transposed: the kernels that each step reads are [out, in] (see `models.rar.Linear`).
    """

    outer: dict[str, Any]
    blocks: tuple[dict[str, Any], ...]
    transposed: bool = flax.struct.field(pytree_node=False)


class Cache(NamedTuple):
    """Keys and values of one block: [R, H, S, K], in the compute dtype, for the S places up to the stage's last.

    The heads stand before the places, so that XLA's products read the cache as it lies instead of copying it.
    """

    k: jax.Array
    v: jax.Array


def prepare(model: RAR, params: dict[str, Any], transposed: bool) -> DecodeParams:
    """Unstacks the blocks, casts to the compute dtype and lays kernels out, once, outside the loop.

    Args:
      model, params: the network, as trained.
      transposed: lay out for few rows on a CPU.
    """
    params = jax.tree.map(lambda x: x.astype(model.dtype), params)
    outer = {name: value for name, value in params.items() if name != "blocks"}
    stacked = flax.traverse_util.flatten_dict(params["blocks"], sep="/")
    if transposed:
        stacked |= {name: stacked[name].swapaxes(1, 2) for name in _TRANSPOSED}
    layers = ({name: value[i] for name, value in stacked.items()} for i in range(model.depth))
    return DecodeParams(outer, tuple(flax.traverse_util.unflatten_dict(layer, sep="/") for layer in layers), transposed)


def _stages(num_tokens: int) -> Iterator[tuple[int, int]]:
    """The tokens that each stage predicts, as (begin, end): about equal parts of 0..T."""
    bounds = [num_tokens * i // _STAGES for i in range(_STAGES + 1)]
    return ((begin, end) for begin, end in itertools.pairwise(bounds) if end > begin)


def _grow(cache: Cache, length: int) -> Cache:
    return Cache(*(jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0))) for x in cache))


def run_loop(
    model: RAR,
    params: DecodeParams,
    labels: jax.Array,
    orders: jax.Array,
    choose: Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]],
    guided: bool,
) -> Any:
    """Runs the steps of B images, each in its own order.

    Args:
      model: the network.
      params: from `prepare`.
      labels: int32 [B], 0..C.
      orders: int32 [B, T].
      choose: (t, logits float32 [R, V] of the t-th token) -> (the t-th tokens int32 [B], anything to keep).
      guided: run each image with the null class too, as rows B .. 2B.

    Returns:
      What `choose` kept, stacked on a leading axis T.
    """
    batch = labels.shape[0]
    repeats = 2 if guided else 1
    # One row a class of the batch and one for the null class, which every image shares.
    classes = jnp.concatenate([labels, jnp.full((repeats - 1,), model.null_class, labels.dtype)])
    outer = {"params": params.outer}
    block = model.block().clone(transposed=params.transposed)

    def every_row(x):
        """[B + 1, ...] -> [2B, ...], or as it is without guidance."""
        if not guided:
            return x
        return jnp.concatenate([x[:batch], jnp.broadcast_to(x[batch:], (batch, *x.shape[1:]))])

    def modulations(places):
        """SiLU(c) [B + 1, S, D], and each block's modulation [B + 1, S, 6D], at these places."""
        condition = model.apply(outer, classes, places, method=RAR.condition)
        return condition, [block.apply({"params": p}, condition, method="modulate") for p in params.blocks]

    def run(caches, x, condition, modulation, place):
        """Runs x [R, S, D] at `place` onwards: logits [R, V] of the last one, and the caches with them."""
        places = place + jnp.arange(x.shape[1])
        mask = jnp.arange(caches[0].k.shape[2])[None, :] <= places[:, None]
        grown = []
        for layer, layer_modulation, cache in zip(params.blocks, modulation, caches, strict=True):

            def attend(q, k, v, cache=cache):
                k = jax.lax.dynamic_update_slice_in_dim(cache.k, k.swapaxes(1, 2), place, axis=2)
                v = jax.lax.dynamic_update_slice_in_dim(cache.v, v.swapaxes(1, 2), place, axis=2)
                attended = weighted_values(attention_weights(q, k.swapaxes(1, 2), mask), v.swapaxes(1, 2))
                return attended, Cache(k, v)

            x, kept = block.apply({"params": layer}, x, every_row(layer_modulation), attend)
            grown.append(kept)
        logits = model.apply(outer, x[:, -1:], every_row(condition[:, -1:]), method=RAR.head)
        return logits[:, 0], grown

    def step(carry, inputs):
        tokens, caches = carry
        t, condition, modulation = inputs
        at, target = (jax.lax.dynamic_slice_in_dim(orders, i, 1, axis=1) for i in (t - 1, t))
        x = model.apply(outer, tokens[:, None], at, target, method=RAR.embed_tokens)
        condition, modulation = jax.tree.map(lambda m: m[:, None], (condition, modulation))
        logits, caches = run(caches, jnp.tile(x, (repeats, 1, 1)), condition, modulation, PREFIX + t - 1)
        tokens, kept = choose(t, logits)
        return (tokens, caches), kept

    shape = (repeats * batch, model.num_heads, PREFIX, model.width // model.num_heads)
    caches = [Cache(jnp.zeros(shape, model.dtype), jnp.zeros(shape, model.dtype)) for _ in params.blocks]
    targets = jnp.tile(orders[:, :1], (repeats, 1))
    x = model.apply(outer, every_row(classes), targets, method=RAR.embed_prefix)
    logits, caches = run(caches, x, *modulations(jnp.arange(PREFIX)), 0)
    tokens, first = choose(0, logits)
    kept = [jax.tree.map(lambda x: x[None], first)]
    for begin, end in _stages(model.num_tokens):
        # The prefill chose the first token.
        steps = jnp.arange(max(begin, 1), end)
        by_step = jax.tree.map(lambda m: m.swapaxes(0, 1), modulations(PREFIX + steps - 1))
        caches = [_grow(cache, PREFIX + end - 1) for cache in caches]
        (tokens, caches), stage = jax.lax.scan(step, (tokens, caches), (steps, *by_step))
        kept.append(stage)
    return jax.tree.map(lambda *stages: jnp.concatenate(stages), *kept)


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
      guidance_weights: float32 [T], of each token; None runs without guidance, at half the cost.
      temperature: float32 [], above 0; None is greedy (the most likely token, whatever the key).

    Returns:
      int32 [B, T], in row-major grid order whatever the scan order.
    """
    batch = labels.shape[0]
    keys = row_keys(key, rows)

    def choose(t, logits):
        if guidance_weights is not None:
            logits = guide(logits[:batch], logits[batch:], guidance_weights[t])
        tokens = choose_token(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t), logits, temperature)
        return tokens, tokens

    orders = jnp.broadcast_to(order, (batch, model.num_tokens))
    visited = run_loop(model, params, labels, orders, choose, guidance_weights is not None).T
    return jnp.zeros_like(visited).at[:, order].set(visited)
