"""Measures the training step of a config on synthetic tokens."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rar_jax.config import Config, mesh_shape
from rar_jax.parallel.mesh import make_mesh, put_batch
from rar_jax.performance import ceilings
from rar_jax.performance.benchmarks.report import peak_memory
from rar_jax.performance.costs import train_flops
from rar_jax.training.program import make_program
from rar_jax.training.state import TrainState

_WARM_UP = 2


def _synthetic_batch(config: Config) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    model, size = config.model, config.train.batch_size
    return {
        "tokens": rng.integers(model.codebook_size, size=(size, model.num_tokens), dtype=np.int32),
        "label": rng.integers(model.num_classes, size=size, dtype=np.int32),
    }


def _time_steps(step: Callable, state: TrainState, batch: dict, steps: int, profile: str | None) -> tuple[list, float]:
    """Returns the times of the steps in s, and the loss of the last one."""
    times = []
    for number in range(_WARM_UP + steps):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        if number >= _WARM_UP:
            times.append(time.perf_counter() - began)
    if profile:
        with jax.profiler.trace(profile):
            state, metrics = jax.block_until_ready(step(state, batch))
    return times, float(metrics["loss"])


def measure(config: Config, steps: int = 5, profile: str | None = None) -> dict[str, dict[str, Any]]:
    """Times the training step on all devices and compares it with the rate of matrix products of this machine.

    Args:
      config: the experiment. No data is read.
      steps: number of timed steps, after two warm-up steps.
      profile: folder to which a trace of one more step is written, for TensorBoard.

    Returns:
      Section -> name -> value. The names hold the units.

    Raises:
      UserError: the mesh or the batch size cannot be divided over the devices.
    """
    mesh = make_mesh(mesh_shape(config, jax.device_count()))
    program = make_program(config)
    dtype = jnp.dtype(config.train.dtype)
    rates = [ceilings.product_rate(dtype)]
    state = jax.block_until_ready(jax.jit(program.init, out_shardings=program.shardings(mesh))())
    batch = put_batch(_synthetic_batch(config), mesh)
    began = time.perf_counter()
    step = program.jit_step(mesh).lower(state, batch).compile()
    compiled = time.perf_counter() - began
    times, loss = _time_steps(step, state, batch, steps, profile)
    # Measured before and after, because the rate of a machine drifts.
    rates.append(ceilings.product_rate(dtype))
    rate, seconds = statistics.mean(rates), statistics.median(times)
    flops = train_flops(config.model) * config.train.batch_size / mesh.size
    results = {
        "batch": config.train.batch_size,
        "dtype": config.train.dtype,
        "remat": config.train.remat,
        "compile, s": compiled,
        "step, s, median": seconds,
        "step, s, slowest": max(times),
        "images/s": config.train.batch_size / seconds,
        "model FLOP per step and device": flops,
        "product rate per device, FLOP/s": rate,
        "model FLOP utilisation": flops / seconds / rate,
        "loss": loss,
    }
    return {f"training step, {config.name}": results | peak_memory()}
