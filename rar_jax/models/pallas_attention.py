"""Causal attention for GPUs in two kernels, which keep the scores and weights on the chip.

`models.attention.causal_attention` defines what they compute. Their formulas are those of Dao et al., 2022,
"FlashAttention", appendix B. Dropout hashes the same places as `models.dropout`, so that the masks are the same.
Dimension letters are those of `models.attention`.

A program of a kernel computes one block of places of one head of one row. The width of a head is padded to a power of
two, which Triton requires; what is loaded beyond the arrays is zero.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec

from rar_jax.models.attention import ATTENDED
from rar_jax.models.dropout import kept

# Places of a block. Triton's products need at least 16.
_BLOCK = 64
_LOWEST = np.float32(-1e30)


class _Sizes(NamedTuple):
    """What the kernels know when they are compiled: S, K and the dropout rate."""

    places: int
    head_width: int
    rate: float

    @property
    def scale(self) -> float:
        return self.head_width**-0.5


def _places(block: jax.Array) -> jax.Array:
    """Returns the places of a block, int32 [P]. The last block may reach beyond S."""
    return block * _BLOCK + jnp.arange(_BLOCK)


def _inside(ref, block: jax.Array, sizes: _Sizes) -> jax.Array:
    """Returns which elements of a block of rows [P, padded K] exist."""
    return (_places(block) < sizes.places)[:, None] & (jnp.arange(ref.shape[-1]) < sizes.head_width)


def _load(ref, block: jax.Array, sizes: _Sizes) -> jax.Array:
    """Loads a block of queries, keys, values or gradients: [P, padded K]."""
    return triton.load(ref.at[pl.ds(block * _BLOCK, _BLOCK), :], mask=_inside(ref, block, sizes), other=0.0)


def _store(ref, block: jax.Array, rows: jax.Array, sizes: _Sizes) -> None:
    """Stores a block that `_load` loads."""
    rows = rows.astype(ref.dtype)
    triton.store(ref.at[pl.ds(block * _BLOCK, _BLOCK), :], rows, mask=_inside(ref, block, sizes))


def _load_numbers(ref, block: jax.Array, sizes: _Sizes) -> jax.Array:
    """Loads a number for each place of a block: float32 [P]."""
    return triton.load(ref.at[pl.ds(block * _BLOCK, _BLOCK)], mask=_places(block) < sizes.places, other=0.0)


def _scores(q, k, query_places, key_places, sizes):
    """Computes the scores of a block of queries and a block of keys: float32 [P, P]."""
    scores = triton.dot(q, k.T) * sizes.scale
    return jnp.where(query_places[:, None] >= key_places, scores, _LOWEST)


def _head_seeds(seeds_ref, sizes: _Sizes) -> tuple[jax.Array, jax.Array]:
    """Returns the two seeds of this program's head. The first one counts the places of the heads before it."""
    preceding = pl.program_id(2) * sizes.places**2
    return seeds_ref[0] + preceding.astype(jnp.uint32), seeds_ref[1]


def _drop(x, seeds, query_places, key_places, sizes):
    """Drops elements of [P, P] as `models.dropout.drop` does in [B, H, S, S]."""
    if not sizes.rate:
        return x
    place = (query_places[:, None] * sizes.places + key_places).astype(jnp.uint32)
    return jnp.where(kept(place, *seeds, sizes.rate), x * np.float32(1 / (1 - sizes.rate)), np.float32(0))


def _forward_kernel(q_ref, k_ref, v_ref, seeds_ref, out_ref, log_total_ref, *, sizes: _Sizes):
    """Computes a block of the output, and the logarithms of the softmax's denominators."""
    own = pl.program_id(0)
    q, queries, seeds = _load(q_ref, own, sizes), _places(own), _head_seeds(seeds_ref, sizes)

    def attend(block, carry):
        """Adds a block of keys to the sums, which are relative to the highest score so far."""
        out, highest, total = carry
        k, v, keys = _load(k_ref, block, sizes), _load(v_ref, block, sizes), _places(block)
        scores = _scores(q, k, queries, keys, sizes)
        higher = jnp.maximum(highest, scores.max(axis=-1))
        shrink, powers = jnp.exp(highest - higher), jnp.exp(scores - higher[:, None])
        dropped = _drop(powers, seeds, queries, keys, sizes).astype(v.dtype)
        return out * shrink[:, None] + triton.dot(dropped, v), higher, total * shrink + powers.sum(axis=-1)

    empty = jnp.zeros(q.shape, jnp.float32), jnp.full(_BLOCK, _LOWEST), jnp.zeros(_BLOCK, jnp.float32)
    out, highest, total = jax.lax.fori_loop(0, own + 1, attend, empty)
    _store(out_ref, own, out / total[:, None], sizes)
    log_total = highest + jnp.log(total)
    triton.store(log_total_ref.at[pl.ds(own * _BLOCK, _BLOCK)], log_total, mask=queries < sizes.places)


def _backward_kernel(
    q_ref, k_ref, v_ref, seeds_ref, gradient_ref, log_total_ref, mean_ref, dq_ref, dk_ref, dv_ref, *, sizes: _Sizes
):
    """Computes the gradients of a block of queries, and of the same block of keys and values."""
    own, seeds = pl.program_id(0), _head_seeds(seeds_ref, sizes)

    def load_queries(block):
        numbers = (_load_numbers(ref, block, sizes)[:, None] for ref in (log_total_ref, mean_ref))
        return _load(q_ref, block, sizes), _load(gradient_ref, block, sizes), *numbers, _places(block)

    def load_keys(block):
        return _load(k_ref, block, sizes), _load(v_ref, block, sizes), _places(block)

    def derivatives(of_queries, of_keys):
        """Returns the dropped weights W and the gradients dS of the scores, [P, P] each."""
        (q, gradient, log_total, mean, queries), (k, v, keys) = of_queries, of_keys
        exists = (queries < sizes.places)[:, None]
        weights = jnp.where(exists, jnp.exp(_scores(q, k, queries, keys, sizes) - log_total), np.float32(0))
        dropped = _drop(weights, seeds, queries, keys, sizes)
        to_weights = _drop(triton.dot(gradient, v.T), seeds, queries, keys, sizes)
        return dropped.astype(q.dtype), (weights * (to_weights - mean) * sizes.scale).astype(q.dtype)

    own_queries, own_keys = load_queries(own), load_keys(own)

    def add_queries(block, sums):
        of_queries = load_queries(block)
        dropped, to_scores = derivatives(of_queries, own_keys)
        return sums[0] + triton.dot(to_scores.T, of_queries[0]), sums[1] + triton.dot(dropped.T, of_queries[1])

    def add_keys(block, dq):
        of_keys = load_keys(block)
        return dq + triton.dot(derivatives(own_queries, of_keys)[1], of_keys[0])

    zero = jnp.zeros(own_keys[0].shape, jnp.float32)
    dk, dv = jax.lax.fori_loop(own, pl.cdiv(sizes.places, _BLOCK), add_queries, (zero, zero))
    _store(dk_ref, own, dk, sizes)
    _store(dv_ref, own, dv, sizes)
    _store(dq_ref, own, jax.lax.fori_loop(0, own + 1, add_keys, zero), sizes)


def _call(
    kernel, results: tuple[int, ...], rate: float, interpret: bool, *arguments: jax.Array
) -> tuple[jax.Array, ...]:
    """Runs a kernel for each block of places, row and head.

    Args:
      kernel: takes references to the arguments and to the results.
      results: the number of axes of each result. Four are those of q, three are float32 [B, H, S].
      rate: the dropout rate.
      interpret: run the kernel without a GPU.
      *arguments: q, k, v [B, S, H, K], seeds [B, 2], and other arrays [B, S, H, K] or [B, H, S].
    """
    q = arguments[0]
    batch, places, heads, head_width = q.shape
    padded = pl.next_power_of_2(head_width)
    # The part of an array that the programs of a head of a row access, by its number of axes.
    parts = {
        4: pl.BlockSpec((None, places, None, padded), lambda block, row, head: (row, 0, head, 0)),
        3: pl.BlockSpec((None, None, places), lambda block, row, head: (row, head, 0)),
        2: pl.BlockSpec((None, 2), lambda block, row, head: (row, 0)),
    }
    shapes = {4: jax.ShapeDtypeStruct(q.shape, q.dtype), 3: jax.ShapeDtypeStruct((batch, heads, places), jnp.float32)}
    return pl.pallas_call(
        functools.partial(kernel, sizes=_Sizes(places, head_width, rate)),
        grid=(pl.cdiv(places, _BLOCK), batch, heads),
        in_specs=[parts[each.ndim] for each in arguments],
        out_specs=tuple(parts[axes] for axes in results),
        out_shape=tuple(shapes[axes] for axes in results),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(*arguments)


def _call_on_mesh(kernel, results, rate, interpret, *arguments) -> tuple[jax.Array, ...]:
    """Runs `_call` on each device's rows and heads. The partitioner would gather all of them, as it knows no kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _call(kernel, results, rate, interpret, *arguments)
    batch, heads = nn.logical_to_mesh_axes(("shared_batch", "heads"))
    specs = {4: PartitionSpec(batch, None, heads), 3: PartitionSpec(batch, heads), 2: PartitionSpec(batch)}

    def call(q, k, v, seeds, *rest):
        # Dropout hashes places in the whole row, in which the heads of other devices precede.
        preceding = jax.lax.axis_index(heads) * (q.shape[2] * q.shape[1] ** 2)
        seeds = seeds.at[:, 0].add(preceding.astype(jnp.uint32))
        return _call(kernel, results, rate, interpret, q, k, v, seeds, *rest)

    in_specs, out_specs = tuple(specs[each.ndim] for each in arguments), tuple(specs[axes] for axes in results)
    return jax.shard_map(call, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arguments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def pallas_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, seeds: jax.Array | None, rate: float, interpret: bool = False
) -> jax.Array:
    """Computes causal attention on a GPU: q, k, v [B, S, H, K] -> [B, S, H, K].

    Attention weights are dropped with probability `rate` if there are seeds uint32 [B, 2]. `interpret` runs the kernels
    without a GPU, for tests.
    """
    return _attention_forward(q, k, v, seeds, rate, interpret)[0]


def _attention_forward(q, k, v, seeds, rate, interpret):
    given, rate = (jnp.zeros((q.shape[0], 2), jnp.uint32), 0.0) if seeds is None else (seeds, rate)
    results = _call_on_mesh(_forward_kernel, (4, 3), rate, interpret, q, k, v, given)
    out, log_total = (checkpoint_name(each, ATTENDED) for each in results)
    return out, (q, k, v, seeds, given, out, log_total)


def _attention_backward(rate, interpret, residuals, gradient):
    q, k, v, seeds, given, out, log_total = residuals
    rate = 0.0 if seeds is None else rate
    mean = jnp.einsum("bqhd,bqhd->bhq", gradient, out, preferred_element_type=jnp.float32)
    arguments = q, k, v, given, gradient, log_total, mean
    dq, dk, dv = _call_on_mesh(_backward_kernel, (4, 4, 4), rate, interpret, *arguments)
    return dq, dk, dv, None if seeds is None else np.zeros(seeds.shape, jax.dtypes.float0)


pallas_attention.defvjp(_attention_forward, _attention_backward)
