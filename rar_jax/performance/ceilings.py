"""Measures the highest rates of this machine, in the same process as the times that are compared with them."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_REPEATS = 3
# The calls of a burst are timed together, so that the time to launch a call hardly counts.
_BURST = 4


def seconds(function: Callable[[], Any], burst: int = 1) -> list[float]:
    """Returns `_REPEATS` times of a call, s: each the mean over a burst of calls, after one call that is not timed."""
    jax.block_until_ready(function())
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        jax.block_until_ready([function() for _ in range(burst)])
        times.append((time.perf_counter() - began) / burst)
    return times


def bandwidth() -> float:
    """Returns the rate at which the first device reads its memory, in bytes/s, measured by summing a large array."""
    x = jnp.ones(1 << (28 if jax.default_backend() == "cpu" else 30), jnp.float32)
    total = jax.jit(jnp.sum)
    return x.nbytes / statistics.median(seconds(lambda: total(x), burst=_BURST))


def product_rate(dtype: jnp.dtype, brief: bool = False) -> float:
    """Returns the rate of matrix products of the first device, in FLOP/s, measured on large square matrices.

    Args:
      dtype: dtype of the matrices.
      brief: measure a rough rate in a shorter time.
    """
    side = (1024 if brief else 4096) if jax.default_backend() == "cpu" else 8192
    # Random numbers, because a GPU multiplies constant matrices faster: it draws less power.
    x = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(jnp.matmul)
    return 2 * side**3 / statistics.median(seconds(lambda: product(x, x), burst=1 if brief else _BURST))
