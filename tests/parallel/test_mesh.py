import dataclasses

import jax
import numpy as np
import pytest

from rar_jax.errors import UserError
from rar_jax.parallel.mesh import _grid, batch_sharding, fetch, host_rows, make_mesh, put_batch


@dataclasses.dataclass(frozen=True)
class Device:
    """Stands for a JAX device of another machine."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100"


def slices(count, each):
    return [Device(i, i // each, i // each) for i in range(count * each)]


@pytest.mark.parametrize(
    ("shape", "count", "along"),
    [
        ((2, 4, 2), 2, (2, 1)),
        ((4, 2, 2), 2, (2, 1)),
        ((8, 1, 2), 4, (4, 1)),
        ((1, 8, 2), 2, (1, 2)),
        ((2, 4, 2), 4, (2, 2)),
    ],
)
def test_slices_are_arranged_along_data_and_then_along_fsdp(shape, count, along):
    grid = _grid(shape, slices(count, 16 // count))
    assert grid.shape == shape and len(set(grid.flat)) == 16
    found = np.vectorize(lambda device: device.slice_index)(grid)
    # If the mesh is cut along each axis by the number of slices on that axis, every part is one slice.
    parts = [part for rows in np.split(found, along[0]) for part in np.split(rows, along[1], axis=1)]
    assert [len(np.unique(part)) for part in parts] == [1] * count
    assert len({part.flat[0] for part in parts}) == count


@pytest.mark.parametrize("shape", [(1, 2, 8), (2, 1, 8)])
def test_tensor_stays_within_a_slice(shape):
    with pytest.raises(UserError, match=r"over the 4 slices of devices, .* config\.mesh\.tensor=8"):
        _grid(shape, slices(4, 4))


@pytest.mark.parametrize("shape", [(8,), (2, 4), (2, 2, 2)])
def test_a_batch_is_sharded_over_all_devices_and_fetched_unchanged(shape):
    mesh = make_mesh(shape)
    assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.size == 8
    batch = {"tokens": np.arange(48).reshape(16, 3), "label": np.arange(16)}
    rows = host_rows(mesh, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    put = put_batch({name: values[rows] for name, values in batch.items()}, mesh)
    for name, values in batch.items():
        assert put[name].sharding == batch_sharding(mesh)
        assert all(shard.data.shape[0] == 2 for shard in put[name].addressable_shards)
        np.testing.assert_array_equal(fetch(put[name]), values)


def test_one_device():
    mesh = make_mesh((1,), jax.devices()[:1])
    np.testing.assert_array_equal(put_batch({"x": np.arange(3)}, mesh)["x"], np.arange(3))
