"""The decode loop: one token a step through a static KV cache, in any scan order.

Dimension letters as in `models.rar`; R is the number of rows decoded, 2B with guidance (conditional ones first).

A step reads every weight once, which bounds its time where rows are few. So what depends on the class and the step
alone, the modulations with a third of the weights, is computed outside the loop, a stage of steps at a time; and the
cache grows from stage to stage, so that attention reads five eighths of its full length on average, with four stages.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from rar_jax.costs import block_kernels
from rar_jax.models.rar import PREFIX, RAR, attention_weights, weighted_values
from rar_jax.orders import row_keys
from rar_jax.sampling.choose import Choice, choose_token
from rar_jax.sampling.guidance import guide

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


# A stage of fewer tokens saves less than it takes to compile.
_STAGE_TOKENS = 32


def _num_stages(model: RAR, rows: int) -> int:
    """How many stages: the loop is compiled once for each, which pays by how much of a step's reads is the cache.

    Four spare 3/8 of the reads of a full cache, and eight 7/16.
    """
    cache = 2 * rows * model.num_tokens * model.width
    kernels = block_kernels(model)
    wanted = 2 if 4 * cache < kernels else 4 if cache < 2 * kernels else 8
    return min(wanted, max(1, model.num_tokens // _STAGE_TOKENS))


def stages(model: RAR, rows: int) -> list[tuple[int, int]]:
    """The tokens that each stage predicts, as (begin, end): about equal parts of 0..T."""
    count = _num_stages(model, rows)
    bounds = [model.num_tokens * i // count for i in range(count + 1)]
    return list(itertools.pairwise(bounds))


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

    # Traced and lowered once for all blocks of a stage.
    @jax.jit
    def run_block(layer, x, modulation, cache, place):
        mask = jnp.arange(cache.k.shape[2])[None, :] <= place + jnp.arange(x.shape[1])[:, None]

        def attend(q, k, v):
            k = jax.lax.dynamic_update_slice_in_dim(cache.k, k.swapaxes(1, 2), place, axis=2)
            v = jax.lax.dynamic_update_slice_in_dim(cache.v, v.swapaxes(1, 2), place, axis=2)
            attended = weighted_values(attention_weights(q, k.swapaxes(1, 2), mask), v.swapaxes(1, 2))
            return attended, Cache(k, v)

        return block.apply({"params": layer}, x, every_row(modulation), attend)

    def run(caches, x, condition, modulation, place):
        """Runs x [R, S, D] at `place` onwards: logits [R, V] of the last one, and the caches with them."""
        grown = []
        for layer, layer_modulation, cache in zip(params.blocks, modulation, caches, strict=True):
            x, kept = run_block(layer, x, layer_modulation, cache, place)
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
    for begin, end in stages(model, repeats * batch):
        # The prefill chose the first token.
        steps = jnp.arange(max(begin, 1), end)
        by_step = jax.tree.map(lambda m: m.swapaxes(0, 1), modulations(PREFIX + steps - 1))
        caches = [_grow(cache, PREFIX + end - 1) for cache in caches]
        (tokens, caches), stage = jax.lax.scan(step, (tokens, caches), (steps, *by_step))
        kept.append(stage)
    return jax.tree.map(lambda *stages: jnp.concatenate(stages), *kept)


# Folded into an image's key for its random order; its tokens fold in 0..T-1.
_ORDER_STREAM = 2**31 - 1


def random_orders(model: RAR, key: jax.Array, rows: jax.Array) -> jax.Array:
    """A uniformly random order for each image, int32 [B, T], from (key, row) alone; see `decode`."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys(key, rows), _ORDER_STREAM)
    return jax.vmap(jax.random.permutation, in_axes=(0, None))(keys, model.num_tokens).astype(jnp.int32)


def decode(
    model: RAR,
    params: DecodeParams,
    labels: jax.Array,
    key: jax.Array,
    rows: jax.Array,
    order: jax.Array | None,
    weights: jax.Array | None,
    choice: Choice,
) -> jax.Array:
    """Samples the tokens of a batch of images. Pure; to be jitted with model static.

    Args:
      model: the network.
      params: from `prepare`.
      labels: int32 [B], classes 0..C-1 (or C for unconditional images).
      key: a typed PRNG key [], of the whole job.
      rows: int32 [B], each image's number in the job. Its draws depend on (key, row, t) alone, so that it comes out
        the same in whichever batch it is sampled.
      order: int32 [T], the scan order; None gives each image a random one.
      weights: float32 [T], of the guidance of each token; None runs without guidance, at half the cost.
      choice: how tokens are chosen.

    Returns:
      int32 [B, T], in row-major grid order whatever the scan order.
    """
    batch = labels.shape[0]
    keys = row_keys(key, rows)

    def choose(t, logits):
        if weights is not None:
            logits = guide(logits[:batch], logits[batch:], weights[t])
        tokens = choose_token(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t), logits, choice)
        return tokens, tokens

    orders = random_orders(model, key, rows) if order is None else jnp.broadcast_to(order, (batch, model.num_tokens))
    visited = run_loop(model, params, labels, orders, choose, weights is not None).T
    return jax.vmap(lambda tokens, order: jnp.zeros_like(tokens).at[order].set(tokens))(visited, orders)
