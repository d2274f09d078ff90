"""Times the steps of a program on one batch that is repeated."""

import dataclasses
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rar_jax.errors import UserError
from rar_jax.parallel.mesh import put_batch
from rar_jax.performance import ceilings
from rar_jax.performance.benchmarks.report import peak_memory
from rar_jax.training.base_program import BaseProgram

_WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """The times of a program's steps.

    Attributes:
      compiled: time of the compilation, s.
      times: time of each step, s.
      loss: the loss of the last step.
    """

    compiled: float
    times: list[float]
    loss: float

    @property
    def median(self) -> float:
        """The median of the times of the steps, s."""
        return statistics.median(self.times)


def time_steps(
    program: BaseProgram, mesh: Mesh, batch: dict[str, np.ndarray], steps: int, profile: str | None = None
) -> StepTimes:
    """Compiles a program and times some of its steps, after two warm-up steps.

    Args:
      program: the program.
      mesh: the devices.
      batch: the global batch.
      steps: number of timed steps.
      profile: folder to which a trace of one more step is written, for TensorBoard.
    """
    state = jax.block_until_ready(jax.jit(program.init, out_shardings=program.shardings(mesh))())
    batch = put_batch(batch, mesh)
    began = time.perf_counter()
    step = program.compile_step(mesh, state, batch)
    compiled, times = time.perf_counter() - began, []
    for number in range(_WARM_UP + steps):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        if number >= _WARM_UP:
            times.append(time.perf_counter() - began)
    if profile:
        with jax.profiler.trace(profile):
            state, metrics = jax.block_until_ready(step(state, batch))
    return StepTimes(compiled, times, float(metrics["loss"]))


def measure_step(
    program: BaseProgram,
    mesh: Mesh,
    batch: dict[str, np.ndarray],
    flops: float,
    dtype: str,
    steps: int,
    profile: str | None = None,
) -> dict[str, Any]:
    """Times a program's steps and compares them with the rate of matrix products of this machine.

    Args:
      program, mesh, batch, steps, profile: see `time_steps`.
      flops: FLOPs of a step on each device.
      dtype: dtype of the products.

    Returns:
      name -> value. The names hold the units.

    Raises:
      UserError: the folder of the trace is a file.
    """
    if profile and pathlib.Path(profile).is_file():
        raise UserError(f"--profile={profile} is a file: name a folder")
    rates = [ceilings.product_rate(jnp.dtype(dtype))]
    timed = time_steps(program, mesh, batch, steps, profile)
    # Measured before and after, because the rate of a machine drifts.
    rates.append(ceilings.product_rate(jnp.dtype(dtype)))
    size, rate = len(next(iter(batch.values()))), statistics.mean(rates)
    return {
        "batch": size,
        "dtype": dtype,
        "compile, s": timed.compiled,
        "step, s, median": timed.median,
        "step, s, slowest": max(timed.times),
        "images/s": size / timed.median,
        "model FLOP per step and device": flops,
        "product rate per device, FLOP/s": rate,
        "model FLOP utilisation": flops / timed.median / rate,
        "loss": timed.loss,
    } | peak_memory()
