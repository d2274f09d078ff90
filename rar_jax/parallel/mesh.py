"""The device mesh, and how batches lie on it."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rar_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(shape: Sequence[int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of so many devices along `AXES`.

    Args:
      shape: the sizes of the axes; 1 for those at the end that are not given.
      devices: all unless some are given. An axis takes whole axes of a TPU's torus where it can. Where the devices are
        in several slices (of TPUs, or nodes of GPUs), the slices lie along `data`, and along `fsdp` if they are more,
        as the network between them is the slower one.

    Raises:
      UserError: the slices cannot lie so.
    """
    devices = jax.devices() if devices is None else devices
    shape = (*shape, *(1,) * (len(AXES) - len(shape)))
    return Mesh(_grid(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in the order of the mesh: [data, fsdp, tensor]."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data = math.gcd(shape[0], slices)
    across = (data, slices // data, 1)
    if shape[1] % across[1]:
        raise UserError(
            f"config.mesh.data={shape[0]} and config.mesh.fsdp={shape[1]} do not divide over the {slices} slices of "
            f"devices, within one of which the config.mesh.tensor={shape[2]} devices of that axis must be"
        )
    within = tuple(size // many for size, many in zip(shape, across, strict=True))
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def host_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, and that it reads: int64 [R], ascending."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.sort(np.concatenate([np.arange(batch_size)[index] for index in held.values()]))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of each process's `host_rows`: [R, ...] a process -> [B, ...] over the mesh."""
    sharding = batch_sharding(mesh)

    def put(rows):
        batch_size = len(rows) * mesh.size // len(mesh.local_devices)
        held = host_rows(mesh, batch_size)

        def shard(index):
            start, stop, _ = index[0].indices(batch_size)
            return rows[np.searchsorted(held, start) :][: stop - start]

        return jax.make_array_from_callback((batch_size, *rows.shape[1:]), sharding, shard)

    return {name: put(rows) for name, rows in batch.items()}


def fetch(array: jax.Array) -> np.ndarray:
    """The whole of an array, in the memory of every process; all that hold some of it must ask."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
