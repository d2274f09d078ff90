"""Products with few rows, arranged for XLA's CPU code. Only the decode loop uses them, and only on a CPU.

The rates are of RAR-B's kernels on 2 cores with a product rate of 190 GFLOP/s.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rar_jax.models.attention import softmax_weights
from rar_jax.models.rar import Linear

# The kernels that each pass reads, and their name if they are transposed.
_PASS_KERNELS = ("attention/qkv/kernel", "attention/proj/kernel", "mlp/fc1/kernel", "mlp/fc2/kernel")
_TRANSPOSED = "transposed_kernel"
# Columns of a vector register. Padding 14 columns to 16 makes a product 1.4 times faster, and padding 30 to 32 makes it
# 1.5 times faster. With four columns or fewer, padding makes it slower.
_COLUMNS = 8


def transpose_kernels(stacked: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Transposes the kernels [L, I, O] of stacked, flattened blocks that each pass reads."""
    kernels = {name.replace("kernel", _TRANSPOSED): stacked[name].swapaxes(1, 2) for name in _PASS_KERNELS}
    return {name: value for name, value in stacked.items() if name not in _PASS_KERNELS} | kernels


def has_transposed_kernels(block: dict[str, Any]) -> bool:
    """Returns whether the parameters of a block were laid out by `transpose_kernels`."""
    return _TRANSPOSED in block["attention"]["qkv"]


def multiply_transposed(method: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
    """Computes a `Linear` whose kernel is transposed to [O, I] as (kernel x^T)^T. A Flax method interceptor.

    With two rows this reads the weights at 26 GB/s, and x @ kernel reads a kernel [I, O] at 20 GB/s. The barriers keep
    XLA from turning one product into the other.
    """
    linear = context.module
    if not isinstance(linear, Linear) or not linear.has_variable("params", _TRANSPOSED):
        return method(*args, **kwargs)
    (x,) = args
    kernel, bias = (linear.get_variable("params", name) for name in (_TRANSPOSED, "bias"))
    rows = x.reshape(-1, x.shape[-1])
    columns = jax.lax.optimization_barrier(jnp.pad(rows.T, ((0, 0), (0, _padding(rows.shape[0])))))
    product = jax.lax.optimization_barrier(kernel @ columns)[:, : rows.shape[0]].T
    return product.reshape(*x.shape[:-1], *linear.features) + bias.reshape(linear.features)


def _padding(rows: int) -> int:
    return 0 if rows <= _COLUMNS // 2 else -rows % _COLUMNS


def attend_few_rows(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes attention of few queries [R, N, H, K] to caches [R, H, S, K]: [R, N, H, K].

    For 7 queries it takes 0.5 to 0.6 of the time of the products in `models.attention`; for one query, the same time.

    Args:
      q, k, v: queries, keys and values.
      mask: bool, broadcastable to [R, H, N, S]; False where a query must not attend.
    """
    columns = jax.lax.optimization_barrier(q.transpose(0, 2, 3, 1))
    scores = jnp.einsum("rhsk,rhkn->rhsn", k, columns, preferred_element_type=jnp.float32)
    scores = jax.lax.optimization_barrier(scores).swapaxes(2, 3)
    weights = jax.lax.optimization_barrier(softmax_weights(scores, mask, q.shape[-1]).astype(q.dtype))
    return jax.lax.optimization_barrier(jnp.einsum("rhns,rhsk->rhnk", weights, v)).swapaxes(1, 2)
