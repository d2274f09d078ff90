"""Makes the device mesh, and shards batches over it."""

import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from rar_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# A tree of arrays, which can have None in place of an array.
PyTree = TypeVar("PyTree")


def make_mesh(shape: Sequence[int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh with the axes data, fsdp and tensor.

    An axis follows whole axes of a TPU's torus if possible. If the devices are in several slices (of TPUs, or nodes of
    GPUs), they are arranged along `data`, and along `fsdp` if `data` is too small, because the network between slices
    is slower than the one within a slice.

    Args:
      shape: the sizes of the axes; axes missing at the end have size 1.
      devices: the devices of the mesh; by default all devices of all processes.

    Raises:
      UserError: the sizes of `data` and `fsdp` cannot be divided over the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = (*shape, *(1,) * (len(AXES) - len(shape)))
    return Mesh(_grid(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def local_mesh() -> Mesh:
    """Makes a mesh of the devices of this process, along `data`."""
    return make_mesh((jax.local_device_count(),), jax.local_devices())


def data_mesh(field: str, batch_size: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh along `data`, on which each device has all parameters and its share of a batch.

    Args:
      field: what the user sets the batch size with, such as config.train.batch_size.
      batch_size: number of images of the batch.
      devices: the devices of the mesh; by default all devices of all processes.

    Raises:
      UserError: the batch cannot be divided over the devices.
    """
    devices = jax.devices() if devices is None else devices
    if batch_size % len(devices):
        raise UserError(f"{field}={batch_size} must be divisible by the {len(devices)} devices")
    return make_mesh((len(devices),), devices)


def _grid(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Returns the devices in the order of the mesh: [data, fsdp, tensor]."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data = math.gcd(shape[0], slices)
    across = (data, slices // data, 1)
    if shape[1] % across[1]:
        raise UserError(
            f"config.mesh.data={shape[0]} and config.mesh.fsdp={shape[1]} do not divide over the {slices} slices of "
            f"devices, and the config.mesh.tensor={shape[2]} devices of the last axis must be within one slice"
        )
    within = tuple(size // count for size, count in zip(shape, across, strict=True))
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that keeps the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that shards the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def host_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a global batch that this process reads for its devices: int64 [R], ascending."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.sort(np.concatenate([np.arange(batch_size)[index] for index in held.values()]))


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Makes global arrays [B, ...] over the mesh from the rows [R, ...] that each process holds (`host_rows`)."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), batch)


def put_tree(tree: PyTree, shardings: PyTree) -> PyTree:
    """Puts NumPy arrays that all processes have on the devices.

    `jax.device_put` would gather a copy from each process on every device, to compare them.

    Args:
      tree: the arrays.
      shardings: a tree like it, or one sharding for all arrays.
    """
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda x, s: jax.make_array_from_callback(x.shape, s, lambda index: x[index]), tree, shardings)


def fetch(array: jax.Array) -> np.ndarray:
    """Returns a whole array in every process's memory; all processes that hold a part of it must call this."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
