"""What this machine can do at most: the ceilings that times are held against, measured in the same run."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_REPEATS = 3
# A burst of calls is timed as one, so that the time to launch one does not count.
_BURST = 4


def seconds(function: Callable[[], Any], repeats: int = _REPEATS, burst: int = 1) -> list[float]:
    """Times a call, in s, `repeats` times, after one that is not counted; each the mean of a burst."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready([function() for _ in range(burst)])
        times.append((time.perf_counter() - began) / burst)
    return times


def bandwidth() -> float:
    """Bytes/s at which the first device reads memory: the sum of a large array."""
    x = jnp.ones(1 << (28 if jax.default_backend() == "cpu" else 30), jnp.float32)
    total = jax.jit(jnp.sum)
    return x.nbytes / statistics.median(seconds(lambda: total(x), burst=_BURST))


def product_rate(dtype: jnp.dtype, brief: bool = False) -> float:
    """FLOP/s of the first device: the product of two large square matrices of a dtype; `brief` is a rough one."""
    side = (1024 if brief else 4096) if jax.default_backend() == "cpu" else 8192
    # Of a constant, GPUs make products faster: they draw less power.
    x = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(jnp.matmul)
    return 2 * side**3 / statistics.median(seconds(lambda: product(x, x), burst=1 if brief else _BURST))
