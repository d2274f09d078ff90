"""Sampling any number of images in batches of one shape."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rar_jax.models.rar import RAR
from rar_jax.orders import scan_order
from rar_jax.parallel.mesh import fetch, host_rows, put_batch, replicated
from rar_jax.sampling.decode import decode, prepare
from rar_jax.sampling.guidance import pow_cosine_weights

_SHOWN_CLASSES = 10

_decode = jax.jit(decode, static_argnames="model")


@functools.cache
def _preparation(model: RAR, mesh: Mesh):
    transposed = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(functools.partial(prepare, model, transposed=transposed), out_shardings=replicated(mesh))


def spread_classes(num_classes: int) -> np.ndarray:
    """The classes that a picture shows when none are named: up to ten, spread over all; int [N]."""
    return np.linspace(0, num_classes - 1, min(num_classes, _SHOWN_CLASSES)).round().astype(int)


def check_labels(labels: Sequence[int], num_classes: int) -> np.ndarray:
    """Labels as int32 [N].

    Raises:
      ValueError: there are none, or one is not a class 0..C-1.
    """
    labels = np.asarray(labels, np.int64)
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"classes {labels.tolist()} must be a list of at least one class")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"class {outside[0]} is not in 0..{num_classes - 1}, the classes of this model")
    return labels.astype(np.int32)


def sample_tokens(
    model: RAR,
    params: dict[str, Any],
    labels: Sequence[int],
    mesh: Mesh,
    *,
    seed: int,
    order: str,
    guidance_scale: float,
    guidance_power: float,
    temperature: float,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """Samples one image a label.

    Image k depends on (params, seed, k, its label) alone; the last batch is padded to the shape of the others.

    Args:
      model, params: the network, as trained.
      labels: N classes.
      mesh: the devices to spread each batch over; the weights are on all of them.
      seed: of all draws.
      order: name of the scan order in which tokens are decoded.
      guidance_scale, guidance_power: of pow-cosine guidance; a scale of 1 runs without, at half the cost.
      temperature: 0 is greedy.
      batch_size: images decoded at once; rounded up to a multiple of the devices, and no more than needed.
      on_batch: told the number of images after each batch.

    Returns:
      int32 [N, T], codes in row-major grid order.

    Raises:
      ValueError: a label, the order, a guidance option, the temperature or the batch size cannot be used.
    """
    labels = check_labels(labels, model.num_classes)
    positions = scan_order(order, model.grid_side)
    if not 0 <= temperature < np.inf:
        raise ValueError(f"temperature {temperature} must be at least 0; 0 takes the most likely token")
    if not 0 <= guidance_scale < np.inf:
        raise ValueError(f"guidance_scale {guidance_scale} must be at least 0; 1 is no guidance")
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size} must be at least 1")
    weights = pow_cosine_weights(model.num_tokens, guidance_scale, guidance_power)
    options = {
        "order": jnp.asarray(positions),
        "guidance_weights": None if guidance_scale == 1 else jnp.asarray(weights),
        "temperature": None if temperature == 0 else jnp.float32(temperature),
    }
    batch_size = -(-min(batch_size, len(labels)) // mesh.size) * mesh.size
    prepared = _preparation(model, mesh)(params)
    batches = []
    for start in range(0, len(labels), batch_size):
        rows = (start + host_rows(mesh, batch_size)).astype(np.int32)
        wanted = min(batch_size, len(labels) - start)
        batch = put_batch({"labels": labels[np.minimum(rows, len(labels) - 1)], "rows": rows}, mesh)
        tokens = _decode(model, prepared, key=jax.random.key(seed), **batch, **options)
        batches.append(fetch(tokens)[:wanted])
        on_batch(wanted)
    return np.concatenate(batches)
