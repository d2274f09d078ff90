"""The network with a static KV cache. It reads a group of tokens, and predicts several positions from the last one.

Dimension letters as in `models.rar`. R is the number of sequences: B, or 2B with guidance (conditional ones first).
W is the width of a group, and the number of positions that a pass predicts.

A pass has 2W - 1 rows. The first W are the tokens of the group in the order visited, each with the position of the next
one as its target. Their keys and values stay in the cache. The other rows are branches: copies of the group's last
token with other targets. A branch sees the tokens before it and itself. The cache places of branches lie behind those
of the group, and later passes overwrite them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from rar_jax.models.attention import attention_weights, weighted_values
from rar_jax.models.rar import RAR, Block
from rar_jax.models.sizes import PREFIX
from rar_jax.sampling.few_rows import attend_few_rows, has_transposed_kernels, multiply_transposed, transpose_kernels


@flax.struct.dataclass
class DecodeParams:
    """Parameters laid out for decoding.

    Attributes:
      outer: the parameters outside the blocks, as in training.
      blocks: one tree for each block, because slicing stacked arrays inside a loop would copy every weight each pass.
    """

    outer: dict[str, Any]
    blocks: tuple[dict[str, Any], ...]


class Cache(NamedTuple):
    """Keys and values of one block: [R, H, S, K] each, in the compute dtype.

    Heads precede places, so that XLA's products read the cache in place instead of copying it.
    """

    k: jax.Array
    v: jax.Array


class Modulation(NamedTuple):
    """What conditions the blocks and the head at S places.

    The leading axis has one entry for each label and one for the null class (B + 1 with guidance, else B), or one for
    each sequence (R).

    Attributes:
      condition: SiLU(c), [B + 1, S, D].
      blocks: each block's shifts, scales and gates, [B + 1, S, 6D].
    """

    condition: jax.Array
    blocks: list[jax.Array]


class Places(NamedTuple):
    """Where the rows of a pass stand in the cache. With a leading axis [R] if sequences are at different places.

    Attributes:
      first: int32 [] or [R], the cache place of the first row. The others follow.
      limits: int32 [N] or [R, N]. A row attends to the places below its limit, and to its own.
    """

    first: jax.Array
    limits: jax.Array


def prepare(model: RAR, params: dict[str, Any], few_rows: bool) -> DecodeParams:
    """Unstacks the blocks and casts the parameters to the compute dtype, once, outside the loop.

    Args:
      model: the network.
      params: its parameters, as trained.
      few_rows: lay out the kernels that each pass reads for a CPU (`sampling.few_rows`).
    """
    params = jax.tree.map(lambda x: x.astype(model.dtype), params)
    outer = {name: value for name, value in params.items() if name != "blocks"}
    stacked = flax.traverse_util.flatten_dict(params["blocks"], sep="/")
    if few_rows:
        stacked = transpose_kernels(stacked)
    layers = ({name: value[i] for name, value in stacked.items()} for i in range(model.config.depth))
    return DecodeParams(outer, tuple(flax.traverse_util.unflatten_dict(layer, sep="/") for layer in layers))


def window(x: jax.Array, start: jax.Array | int, width: int) -> jax.Array:
    """Takes `width` entries of axis 1 of x [B, L, ...] from `start` int32 [], or from an own start [B] in each row."""
    if jnp.ndim(start) == 0:
        return jax.lax.dynamic_slice_in_dim(x, start, width, axis=1)
    return jax.vmap(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, width, axis=0))(x, start)


def grow(cache: Cache, length: int) -> Cache:
    """Makes a cache `length` places long. The places beyond `length` hold branches, which are not read again."""
    length_now = cache.k.shape[2]
    return Cache(
        *(jnp.pad(x[:, :, :length], ((0, 0), (0, 0), (0, max(0, length - length_now)), (0, 0))) for x in cache)
    )


def _write(cache: jax.Array, new: jax.Array, first: jax.Array) -> jax.Array:
    """Writes new [R, N, H, K] into a cache [R, H, S, K], from place `first` int32 [] or [R]."""
    new = new.swapaxes(1, 2)
    if first.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(cache, new, first, axis=2)
    update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
    return jax.vmap(update)(cache, new, first)


# Jitted, so that a loop traces and lowers one block for all.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply_block(
    block: Block,
    length: int,
    params: dict[str, Any],
    x: jax.Array,
    modulation: jax.Array,
    cache: Cache,
    places: Places,
) -> tuple[jax.Array, Cache]:
    """Applies a block to N rows of each sequence, and writes their keys and values into the cache.

    Args:
      block: the module.
      length: number of places that the pass reads, from the first one of the cache.
      params: its parameters.
      x: [R, N, D].
      modulation: [B + 1, N, 6D] or [R, N, 6D].
      cache: of at least the places that the pass reads and writes.
      places: where the rows stand.
    """
    seen, own = jnp.arange(length), jnp.arange(x.shape[1]) + places.first[..., None]
    mask = (seen < places.limits[..., None]) | (seen == own[..., None])
    if mask.ndim == 3:
        mask = mask[:, None]

    def attend(q, k, v):
        written = Cache(_write(cache.k, k, places.first), _write(cache.v, v, places.first))
        k, v = (each[:, :, :length] for each in written)
        if has_transposed_kernels(params):
            return attend_few_rows(q, k, v, mask), written
        return weighted_values(attention_weights(q, k.swapaxes(1, 2), mask), v.swapaxes(1, 2)), written

    with nn.intercept_methods(multiply_transposed):
        return block.apply({"params": params}, x, for_each_sequence(modulation, x.shape[0]), attend)


def for_each_sequence(x: jax.Array, sequences: int) -> jax.Array:
    """[B + 1, ...] -> [2B, ...], the last entry repeated for each image; [R, ...] as it is."""
    if x.shape[0] == sequences:
        return x
    batch = sequences // 2
    return jnp.concatenate([x[:batch], jnp.broadcast_to(x[batch:], (batch, *x.shape[1:]))])


class CachedNetwork:
    """The network and the images that it decodes. Nothing in it changes during a loop.

    Attributes:
      model: the network.
      codebook_size: V.
      batch, sequences: B and R.
    """

    def __init__(self, model: RAR, params: DecodeParams, labels: jax.Array, orders: jax.Array, guided: bool):
        """Computes what the loop needs of the classes and orders.

        Args:
          model: the network.
          params: from `prepare`.
          labels: int32 [B], 0..C.
          orders: int32 [B, T].
          guided: decode each image with the null class too, as sequences B .. 2B - 1.
        """
        self.model, self._params = model, params
        self._copies = 2 if guided else 1
        self.codebook_size = model.config.codebook_size
        self.batch, self.sequences = labels.shape[0], self._copies * labels.shape[0]
        null = jnp.full((self._copies - 1,), model.config.null_class, labels.dtype)
        self._labels = jnp.concatenate([labels, null])
        # Padded, so that no window is clamped: one token is in front, and a group may reach beyond the last one.
        self._orders = jnp.pad(orders, ((0, 0), (1, orders.shape[1])), mode="edge")

    def _apply(self, method: Callable, *args: Any) -> jax.Array:
        return self.model.apply({"params": self._params.outer}, *args, method=method)

    def positions(self, start: jax.Array | int, width: int) -> jax.Array:
        """Grid positions of `width` tokens of each order, from number `start` ([] or [B], from -1): int32 [B, W]."""
        return window(self._orders, start + 1, width)

    def modulate(self, places: jax.Array) -> Modulation:
        """Computes the modulation at places int32 [S] of the sequence, or at own places [B, S] of each image."""
        # Padding may lie beyond the last place.
        places = jnp.minimum(places, self.model.config.num_tokens + 1)
        if places.ndim == 1:
            condition = self._apply(RAR.condition, self._labels, places)
        else:
            labels = for_each_sequence(self._labels, self.sequences)
            each = jax.vmap(lambda label, places: self._apply(RAR.condition, label[None], places)[0])
            condition = each(labels, jnp.tile(places, (self._copies, 1)))
        block = self.model.block()
        return Modulation(
            condition, [block.apply({"params": p}, condition, method=Block.modulate) for p in self._params.blocks]
        )

    @property
    def reads_parts_of_caches(self) -> bool:
        """Whether reading a part of a long cache is as fast as reading a short one, which it is not on a CPU."""
        return not has_transposed_kernels(self._params.blocks[0])

    def empty_caches(self, length: int) -> list[Cache]:
        """Makes a cache of `length` places for each block."""
        config = self.model.config
        shape = (self.sequences, config.num_heads, length, config.width // config.num_heads)
        zeros = jnp.zeros(shape, self.model.dtype)
        return [Cache(zeros, zeros) for _ in self._params.blocks]

    def prefill(self, width: int) -> tuple[jax.Array, list[Cache]]:
        """Reads the cls and the class token: logits float32 [R, width, V] of the first tokens, and the caches."""
        targets = jnp.tile(self.positions(0, width), (self._copies, 1))
        x = self._apply(RAR.embed_prefix, for_each_sequence(self._labels, self.sequences), targets)
        modulation = self.modulate(jnp.minimum(jnp.arange(1 + width), 1))
        places = Places(jnp.int32(0), jnp.minimum(jnp.arange(1 + width), 1))
        x, caches = self._run_blocks(x, self.empty_caches(1 + width), 1 + width, modulation, places)
        return self._logits(x[:, 1:], modulation.condition[:, 1:]), caches

    def read_group(
        self,
        tokens: jax.Array,
        count: jax.Array,
        size: jax.Array | int,
        caches: list[Cache],
        length: int,
        modulation: Modulation,
    ) -> tuple[jax.Array, list[Cache]]:
        """Reads a group, and predicts the next W tokens from its last one.

        Args:
          tokens: int32 [B, W], the group, padded.
          count: int32 [], the tokens visited before the group.
          size: from 1 to W, the tokens of the group. An int if it is W.
          caches: with the places up to count + 2W.
          length: number of places of the caches that are read, at least count + 2W + 1.
          modulation: at the W places from count + PREFIX.

        Returns:
          logits float32 [R, W, V], and the caches.
        """
        width = tokens.shape[1]
        x = self.embed_group(tokens, count, size)
        rows = jax.tree.map(lambda m: _with_branches(m, size), modulation)
        x, caches = self._run_blocks(x, caches, length, rows, group_places(count, size, width))
        return self._logits(_predicting(x, size), _predicting(rows.condition, size)), caches

    def embed_group(self, tokens: jax.Array, count: jax.Array, size: jax.Array | int) -> jax.Array:
        """Embeds the rows of a pass: [R, 2W - 1, D]. `count` and `size` are [], or [B] for each image."""
        width = tokens.shape[1]
        tokens = _with_branches(tokens, size)
        positions = _with_branches(self.positions(count, width), size)
        targets = [self.positions(count + 1, width), self.positions(count + size + 1, width - 1)]
        targets = jnp.tile(jnp.concatenate(targets, axis=1), (self._copies, 1))
        tokens, positions = (jnp.tile(each, (self._copies, 1)) for each in (tokens, positions))
        x = self._apply(RAR.embed_tokens, tokens, positions, targets)
        if jnp.ndim(count) == 0:
            return x
        # The class token is number -1: the group of an image of which no token is known.
        class_tokens = self._apply(RAR.embed_prefix, for_each_sequence(self._labels, self.sequences), targets)[:, 1:]
        return jnp.where(jnp.tile(count, self._copies)[:, None, None] < 0, class_tokens, x)

    def read_all(self, visited: jax.Array, length: int) -> tuple[jax.Array, list[Cache]]:
        """Reads whole images in one causal pass.

        Args:
          visited: int32 [B, T], the tokens in the order visited.
          length: places of the caches, at least T + 2.

        Returns:
          logits float32 [R, T, V] of all tokens, and the caches.
        """
        num_tokens = visited.shape[1]
        tile = (self._copies, 1)
        prefix = self._apply(
            RAR.embed_prefix, for_each_sequence(self._labels, self.sequences), jnp.tile(self.positions(0, 1), tile)
        )
        positions, targets = (jnp.tile(self.positions(start, num_tokens), tile) for start in (0, 1))
        x = jnp.concatenate(
            [prefix, self._apply(RAR.embed_tokens, jnp.tile(visited, tile), positions, targets)], axis=1
        )
        places = jnp.arange(x.shape[1])
        modulation = self.modulate(places)
        x, caches = self._run_blocks(x, self.empty_caches(length), length, modulation, Places(jnp.int32(0), places))
        return self._logits(x[:, 1:-1], modulation.condition[:, 1:-1]), caches

    def read_groups(
        self, tokens: jax.Array, count: jax.Array, size: jax.Array, caches: list[Cache]
    ) -> tuple[jax.Array, list[Cache]]:
        """Reads a group of each image, which may be at different places.

        Args:
          tokens: int32 [B, W], the groups, padded.
          count: int32 [B], the tokens visited before each group. At -1 the group is the class token.
          size: int32 [B], from 1 to W, the tokens of each group.
          caches: with the places up to T + 2W.

        Returns:
          logits float32 [R, 2W - 1, V] of all rows, and the caches. Row i < W predicts the token after the i-th of the
          group. Row W + j predicts the token j + 2 places after the group's last one.
        """
        width = tokens.shape[1]
        places = count[:, None] + PREFIX + jnp.arange(width)
        sizes = jnp.tile(size, self._copies)
        modulation = jax.tree.map(lambda m: _with_branches(m, sizes), self.modulate(places))
        x, caches = self._run_blocks(
            self.embed_group(tokens, count, size),
            caches,
            caches[0].k.shape[2],
            modulation,
            group_places(jnp.tile(count, self._copies), sizes, width),
        )
        return self._logits(x, modulation.condition), caches

    def _run_blocks(
        self, x: jax.Array, caches: list[Cache], length: int, modulation: Modulation, places: Places
    ) -> tuple[jax.Array, list[Cache]]:
        """Applies all blocks to rows x [R, N, D], which read the first `length` places of the caches."""
        block, written = self.model.block(), []
        for params, block_modulation, cache in zip(self._params.blocks, modulation.blocks, caches, strict=True):
            x, cache = _apply_block(block, length, params, x, block_modulation, cache, places)
            written.append(cache)
        return x, written

    def _logits(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        return self._apply(RAR.head, x, for_each_sequence(condition, self.sequences))


def _with_branches(x: jax.Array, size: jax.Array | int) -> jax.Array:
    """Adds W - 1 copies of the last of `size` entries to x [B, W, ...]: [B, 2W - 1, ...]."""
    width = x.shape[1]
    last = window(x, size - 1, 1)
    return jnp.concatenate([x, jnp.broadcast_to(last, (x.shape[0], width - 1, *x.shape[2:]))], axis=1)


def _predicting(x: jax.Array, size: jax.Array | int) -> jax.Array:
    """Takes the rows of x [R, 2W - 1, ...] that predict the next W tokens: the group's last one, and the branches."""
    width = (x.shape[1] + 1) // 2
    return jnp.concatenate([window(x, size - 1, 1), x[:, width:]], axis=1)


def group_places(count: jax.Array, size: jax.Array | int, width: int) -> Places:
    """Returns where the 2W - 1 rows of a pass stand; `count` and `size` are [], or [R] for each sequence."""
    first = jnp.asarray(count + PREFIX, jnp.int32)
    group = first[..., None] + jnp.arange(width)
    branches = jnp.broadcast_to(jnp.asarray(first + size - 1)[..., None], (*first.shape, width - 1))
    return Places(first, jnp.concatenate([group, branches], axis=-1))
