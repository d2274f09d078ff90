"""Measures the training step of a tokenizer's config on random images."""

from typing import Any

import numpy as np

from rar_jax.parallel.mesh import data_mesh
from rar_jax.performance.benchmarks.steps import measure_step
from rar_jax.performance.costs import vqgan_train_flops
from rar_jax.tokenizer_config import TokenizerConfig
from rar_jax.tokenizer_training.program import make_program


def synthetic_batch(config: TokenizerConfig) -> dict[str, np.ndarray]:
    """Returns a batch of random images."""
    shape = (config.train.batch_size, config.data.image_size, config.data.image_size, 3)
    return {"image": np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)}


def measure(config: TokenizerConfig, steps: int = 5, profile: str | None = None) -> dict[str, dict[str, Any]]:
    """Times the training step on all devices and compares it with the rate of matrix products of this machine.

    The FLOPs of a perceptual loss and of a discriminator are not counted, and there is no perceptual loss.

    Args:
      config: the experiment. No image is read.
      steps: number of timed steps, after two warm-up steps.
      profile: folder to which a trace of one more step is written, for TensorBoard.

    Returns:
      Section -> name -> value. The names hold the units.

    Raises:
      UserError: the batch size cannot be divided over the devices.
    """
    mesh = data_mesh("config.train.batch_size", config.train.batch_size)
    flops = vqgan_train_flops(config.model, config.data.image_size) * config.train.batch_size / mesh.size
    batch, dtype = synthetic_batch(config), config.train.dtype
    results = measure_step(make_program(config), mesh, batch, flops, dtype, steps, profile)
    return {f"training step, {config.name}": results}
