"""The decode loop: one token a step, in any scan order, with a static KV cache.

Dimension letters as in `models.rar`. R is the number of sequences: B, or 2B with guidance (conditional ones first).

A step reads every weight once, which bounds its time if there are few sequences. So the modulations, which hold a third
of the weights and depend on the class and the step alone, are computed outside the loop, one stage of steps at a time.
The cache grows from stage to stage: with four stages, attention reads five eighths of its full length on average.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from rar_jax.models.rar import RAR, Block, Linear, attention_weights, weighted_values
from rar_jax.models.sizes import PREFIX
from rar_jax.orders import row_keys
from rar_jax.performance.costs import block_kernels
from rar_jax.sampling.choose import Choice, choose_token
from rar_jax.sampling.guidance import guide

# A stage with fewer tokens saves less time than it takes to compile.
_STAGE_TOKENS = 32

# The kernels that each step reads, and the name of a kernel that is transposed for few sequences.
_STEP_KERNELS = ("attention/qkv/kernel", "attention/proj/kernel", "mlp/fc1/kernel", "mlp/fc2/kernel")
_TRANSPOSED = "transposed_kernel"


@flax.struct.dataclass
class DecodeParams:
    """Parameters laid out for decoding.

    Attributes:
      outer: the parameters outside the blocks, as in training.
      blocks: one tree for each block, because slicing stacked arrays inside the loop would copy every weight each step.
    """

    outer: dict[str, Any]
    blocks: tuple[dict[str, Any], ...]


class Cache(NamedTuple):
    """Keys and values of one block: [R, H, S, K] each, in the compute dtype, for the S places up to the stage's last.

    Heads precede places, so that XLA's products read the cache in place instead of copying it.
    """

    k: jax.Array
    v: jax.Array


class Modulation(NamedTuple):
    """The conditioning of the blocks and the head at S places, with a row for each label and one for the null class.

    Attributes:
      condition: SiLU(c), [B + 1, S, D] with guidance, else [B, S, D].
      blocks: each block's shifts, scales and gates, [B + 1, S, 6D] or [B, S, 6D].
    """

    condition: jax.Array
    blocks: list[jax.Array]


class State(NamedTuple):
    """The values that the loop carries from step to step.

    Attributes:
      tokens: int32 [B], the tokens drawn last.
      caches: the cache of each block.
    """

    tokens: jax.Array
    caches: list[Cache]


def prepare(model: RAR, params: dict[str, Any], few_sequences: bool) -> DecodeParams:
    """Unstacks the blocks and casts the parameters to the compute dtype, once, outside the loop.

    Args:
      model: the network.
      params: its parameters, as trained.
      few_sequences: transpose the kernels that each step reads, for a CPU (`_multiply_transposed`).
    """
    params = jax.tree.map(lambda x: x.astype(model.dtype), params)
    outer = {name: value for name, value in params.items() if name != "blocks"}
    stacked = flax.traverse_util.flatten_dict(params["blocks"], sep="/")
    if few_sequences:
        for name in _STEP_KERNELS:
            stacked[name.replace("kernel", _TRANSPOSED)] = stacked.pop(name).swapaxes(1, 2)
    layers = ({name: value[i] for name, value in stacked.items()} for i in range(model.config.depth))
    return DecodeParams(outer, tuple(flax.traverse_util.unflatten_dict(layer, sep="/") for layer in layers))


def _multiply_transposed(method: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
    """Computes a `Linear` whose kernel `prepare` transposed to [O, I] as (kernel x^T)^T. A Flax method interceptor.

    XLA's CPU code then reads the weights at 24 GB/s with two sequences, instead of 17 GB/s for x @ kernel with a kernel
    [I, O] (with 16 sequences: 17 instead of 13). The barriers keep XLA from turning one product into the other.
    """
    linear = context.module
    if not isinstance(linear, Linear) or not linear.has_variable("params", _TRANSPOSED):
        return method(*args, **kwargs)
    (x,) = args
    kernel, bias = (linear.get_variable("params", name) for name in (_TRANSPOSED, "bias"))
    columns = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
    product = jax.lax.optimization_barrier(kernel @ columns).T
    return product.reshape(*x.shape[:-1], *linear.features) + bias.reshape(linear.features)


def _for_each_sequence(x: jax.Array, sequences: int) -> jax.Array:
    """Repeats the null class's row for each image: [B + 1, ...] -> [2B, ...]. Without guidance, returns x [B, ...]."""
    if x.shape[0] == sequences:
        return x
    batch = sequences // 2
    return jnp.concatenate([x[:batch], jnp.broadcast_to(x[batch:], (batch, *x.shape[1:]))])


# Jitted, so that each stage traces and lowers one block instead of all.
@functools.partial(jax.jit, static_argnums=0)
def _apply_block(
    block: Block, params: dict[str, Any], x: jax.Array, modulation: jax.Array, cache: Cache, place: jax.Array
) -> tuple[jax.Array, Cache]:
    """Applies a block to N new places of each sequence, and writes their keys and values into the cache.

    Args:
      block, params: the module and its parameters.
      x: [R, N, D].
      modulation: the block's entry in `Modulation`.
      cache: the cache of all places up to the stage's last.
      place: int32 [], the first new place.
    """
    mask = jnp.arange(cache.k.shape[2])[None, :] <= place + jnp.arange(x.shape[1])[:, None]

    def attend(q, k, v):
        k = jax.lax.dynamic_update_slice_in_dim(cache.k, k.swapaxes(1, 2), place, axis=2)
        v = jax.lax.dynamic_update_slice_in_dim(cache.v, v.swapaxes(1, 2), place, axis=2)
        attended = weighted_values(attention_weights(q, k.swapaxes(1, 2), mask), v.swapaxes(1, 2))
        return attended, Cache(k, v)

    with nn.intercept_methods(_multiply_transposed):
        return block.apply({"params": params}, x, _for_each_sequence(modulation, x.shape[0]), attend)


class Decoder:
    """The network and the images that it decodes. Nothing in it changes during the loop."""

    def __init__(self, model: RAR, params: DecodeParams, labels: jax.Array, orders: jax.Array, guided: bool):
        """Fixes the images to decode.

        Args:
          model: the network.
          params: the parameters, from `prepare`.
          labels: int32 [B], 0..C.
          orders: int32 [B, T], the order of each image's tokens.
          guided: decode each image with the null class too, as sequences B .. 2B - 1.
        """
        self._model, self._params = model, params
        self._orders = orders
        self._copies = 2 if guided else 1
        self.sequences = self._copies * labels.shape[0]
        null = jnp.full((self._copies - 1,), model.config.null_class, labels.dtype)
        self._labels = jnp.concatenate([labels, null])

    def _apply(self, method: Callable, *args: Any) -> jax.Array:
        return self._model.apply({"params": self._params.outer}, *args, method=method)

    def modulate(self, places: jax.Array) -> Modulation:
        """Computes the modulation at places int32 [S] of the sequence."""
        condition = self._apply(RAR.condition, self._labels, places)
        block = self._model.block()
        return Modulation(
            condition, [block.apply({"params": p}, condition, method=Block.modulate) for p in self._params.blocks]
        )

    def empty_caches(self, length: int) -> list[Cache]:
        """Makes a cache of `length` places for each block."""
        config = self._model.config
        shape = (self.sequences, config.num_heads, length, config.width // config.num_heads)
        zeros = jnp.zeros(shape, self._model.dtype)
        return [Cache(zeros, zeros) for _ in self._params.blocks]

    def prefill(self) -> tuple[jax.Array, list[Cache]]:
        """Processes the cls and the class token. Returns logits float32 [R, V] of the first token, and the caches."""
        targets = jnp.tile(self._orders[:, :1], (self._copies, 1))
        x = self._apply(RAR.embed_prefix, _for_each_sequence(self._labels, self.sequences), targets)
        return self._forward(x, self.empty_caches(PREFIX), self.modulate(jnp.arange(PREFIX)), 0)

    def step(self, state: State, t: jax.Array, modulation: Modulation) -> tuple[jax.Array, list[Cache]]:
        """Processes the tokens drawn last. Returns logits float32 [R, V] of the t-th token, and the caches.

        Args:
          state: the state after token t - 1 was drawn.
          t: int32 [], at least 1.
          modulation: the modulation at place PREFIX + t - 1 alone.
        """
        position, target = (jax.lax.dynamic_slice_in_dim(self._orders, i, 1, axis=1) for i in (t - 1, t))
        x = self._apply(RAR.embed_tokens, state.tokens[:, None], position, target)
        return self._forward(jnp.tile(x, (self._copies, 1, 1)), state.caches, modulation, PREFIX + t - 1)

    def _forward(
        self, x: jax.Array, caches: list[Cache], modulation: Modulation, place: jax.Array | int
    ) -> tuple[jax.Array, list[Cache]]:
        """Applies the network to x [R, N, D] from `place` on. Returns the last logits [R, V], and the caches."""
        block, written = self._model.block(), []
        for params, block_modulation, cache in zip(self._params.blocks, modulation.blocks, caches, strict=True):
            x, cache = _apply_block(block, params, x, block_modulation, cache, jnp.int32(place))
            written.append(cache)
        condition = _for_each_sequence(modulation.condition[:, -1:], self.sequences)
        return self._apply(RAR.head, x[:, -1:], condition)[:, 0], written


def _num_stages(model: RAR, sequences: int) -> int:
    """Returns the number of stages, from the cache's share of the bytes that a step reads.

    The loop is compiled once for each stage. Four stages save 3/8 of the reads of a full cache, and eight save 7/16.
    """
    cache = 2 * sequences * model.config.num_tokens * model.config.width
    kernels = block_kernels(model.config)
    wanted = 2 if 4 * cache < kernels else 4 if cache < 2 * kernels else 8
    return min(wanted, max(1, model.config.num_tokens // _STAGE_TOKENS))


def stages(model: RAR, sequences: int) -> list[tuple[int, int]]:
    """Returns the range of tokens that each stage predicts, as (begin, end). The ranges are nearly equal."""
    count = _num_stages(model, sequences)
    bounds = [model.config.num_tokens * i // count for i in range(count + 1)]
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
    """Decodes all tokens of B images, each in its own order.

    Args:
      model, params, labels, orders, guided: see `Decoder`.
      choose: (t, logits float32 [R, V] of the t-th token) -> (the t-th tokens int32 [B], a value to keep).

    Returns:
      The values that `choose` kept, stacked on a leading axis T.
    """
    decoder = Decoder(model, params, labels, orders, guided)
    logits, caches = decoder.prefill()
    tokens, value = choose(0, logits)
    state, kept = State(tokens, caches), [jax.tree.map(lambda x: x[None], value)]

    def step(state, inputs):
        t, modulation = inputs
        logits, caches = decoder.step(state, t, jax.tree.map(lambda m: m[:, None], modulation))
        tokens, value = choose(t, logits)
        return State(tokens, caches), value

    for begin, end in stages(model, decoder.sequences):
        # The prefill predicted the first token.
        steps = jnp.arange(max(begin, 1), end)
        by_step = jax.tree.map(lambda m: m.swapaxes(0, 1), decoder.modulate(PREFIX + steps - 1))
        state = state._replace(caches=[_grow(cache, PREFIX + end - 1) for cache in state.caches])
        state, values = jax.lax.scan(step, state, (steps, by_step))
        kept.append(values)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept)


# Folded into an image's key for its random order. The image's tokens fold in 0..T-1.
_ORDER_STREAM = 2**31 - 1


def random_orders(model: RAR, key: jax.Array, numbers: jax.Array) -> jax.Array:
    """Draws a uniformly random order for each image, int32 [B, T], from (key, number) alone; see `decode`."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys(key, numbers), _ORDER_STREAM)
    return jax.vmap(jax.random.permutation, in_axes=(0, None))(keys, model.config.num_tokens).astype(jnp.int32)


def decode(
    model: RAR,
    params: DecodeParams,
    labels: jax.Array,
    key: jax.Array,
    numbers: jax.Array,
    order: jax.Array | None,
    weights: jax.Array | None,
    choice: Choice,
) -> jax.Array:
    """Samples the tokens of a batch of images. Pure; to be jitted with `model` static.

    Args:
      model: the network.
      params: from `prepare`.
      labels: int32 [B], classes 0..C-1 (or C for unconditional images).
      key: a typed PRNG key [], the same for the whole job.
      numbers: int32 [B], each image's number in the job. Its draws depend on (key, number, t) alone, so that an image
        does not depend on its batch.
      order: int32 [T], the scan order; None gives each image a random order.
      weights: float32 [T], the guidance weight of each token; None decodes without guidance, at half the cost.
      choice: how tokens are drawn.

    Returns:
      int32 [B, T], in row-major grid order, also for other scan orders.
    """
    batch = labels.shape[0]
    keys = row_keys(key, numbers)

    def choose(t, logits):
        if weights is not None:
            logits = guide(logits[:batch], logits[batch:], weights[t])
        tokens = choose_token(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t), logits, choice)
        return tokens, tokens

    if order is None:
        orders = random_orders(model, key, numbers)
    else:
        orders = jnp.broadcast_to(order, (batch, model.config.num_tokens))
    visited = run_loop(model, params, labels, orders, choose, weights is not None).T
    return jax.vmap(lambda tokens, order: jnp.zeros_like(tokens).at[order].set(tokens))(visited, orders)
