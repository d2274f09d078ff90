"""Measures the training step of a config on synthetic tokens."""

from typing import Any

import jax
import numpy as np

from rar_jax.config import Config, mesh_shape
from rar_jax.parallel.mesh import make_mesh
from rar_jax.performance.benchmarks.steps import measure_step
from rar_jax.performance.costs import train_flops
from rar_jax.training.program import make_program


def synthetic_batch(config: Config) -> dict[str, np.ndarray]:
    """Returns a batch of random tokens and labels."""
    rng = np.random.default_rng(0)
    model, size = config.model, config.train.batch_size
    return {
        "tokens": rng.integers(model.codebook_size, size=(size, model.num_tokens), dtype=np.int32),
        "label": rng.integers(model.num_classes, size=size, dtype=np.int32),
    }


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
    flops = train_flops(config.model) * config.train.batch_size / mesh.size
    batch, dtype = synthetic_batch(config), config.train.dtype
    results = {"remat": config.train.remat}
    results |= measure_step(make_program(config), mesh, batch, flops, dtype, steps, profile)
    return {f"training step, {config.name}": results}
