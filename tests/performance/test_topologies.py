"""Opening topologies. What needs a compiler is skipped where it is not installed."""

import importlib.util
import os

import pytest

from rar_jax.errors import UserError
from rar_jax.parallel.mesh import make_mesh
from rar_jax.performance import topologies
from rar_jax.performance.chips import CHIPS

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="jax-cuda12-plugin is not installed"
)


@pytest.fixture
def own_environment(monkeypatch):
    """Restores the environment after the test."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_libtpu_is_given_only_what_is_missing(own_environment):
    os.environ.pop("TPU_SKIP_MDS_QUERY", None)
    os.environ["TPU_ACCELERATOR_TYPE"] = "v6e-8"
    topologies._prepare_libtpu()
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1" and os.environ["TPU_ACCELERATOR_TYPE"] == "v6e-8"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b200:8", "must begin with one of v4, v5e, v5p, v6e, a100, h100, h200, such as v5e:8x8 or h200:8"),
        ("h200", "must end with the number of GPUs or with nodes x GPUs, such as h200:2x8"),
        ("h200:0x8", "must end with the number of GPUs"),
        ("a100:1x2x8", "must end with the number of GPUs"),
    ],
)
def test_an_unknown_topology_is_refused(name, message):
    with pytest.raises(UserError, match=f"topology={name!r} {message}"):
        topologies.open_topology(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:2x2", "needs the TPU compiler, the package libtpu: install it with launch/install.sh tpu"),
        ("h200:1", "needs the GPU compiler, the package jax-cuda12-plugin .*: install it with launch/install.sh aot"),
    ],
)
def test_a_missing_compiler_is_refused_by_name(monkeypatch, name, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        topologies.open_topology(name)


@pytest.mark.parametrize("kind", topologies.GPUS)
def test_a_target_agrees_with_the_data_sheet(kind):
    text = (topologies._TARGETS / f"{kind.lower()}.txtpb").read_text()
    fields = dict(line.split(": ") for line in map(str.strip, text.splitlines()) if ": " in line and "{" not in line)
    assert fields["device_description_str"] == f'"NVIDIA {kind}"'
    assert float(fields["memory_bandwidth"]) == CHIPS[kind].bandwidth
    assert float(fields["device_memory_size"]) == pytest.approx(CHIPS[kind].memory, rel=0.07)


@needs_plugin
@pytest.mark.parametrize(("name", "nodes"), [("h200:1", [0]), ("a100:8", [0] * 8), ("h100:2x8", [0] * 8 + [1] * 8)])
def test_gpus_have_a_node_each(name, nodes):
    topology = topologies.open_topology(name)
    assert topology.chip.is_gpu and [device.process_index for device in topology.devices] == nodes


@needs_libtpu
@pytest.mark.parametrize("name", ["v4:2x2x2", "v5p:2x2x2", "v6e:2x4"])
@pytest.mark.parametrize("shape", [(8,), (1, 8), (4, 2), (2, 4), (2, 2, 2), (1, 4, 2)])
def test_a_mesh_of_every_shape_can_be_made_on_every_kind_of_slice(name, shape):
    """Each device is a chip."""
    devices = topologies.open_topology(name).devices
    assert len(devices) == make_mesh(shape, devices).size == 8


@needs_libtpu
def test_a_mesh_axis_can_use_part_of_a_torus_axis():
    devices = topologies.open_topology("v5e:8x8").devices
    mesh = make_mesh((8, 4, 2), devices)
    assert len(set(mesh.devices.flat)) == 64
    # The devices that communicate most are neighbours.
    for first, second in mesh.devices.reshape(-1, 2):
        assert sum(abs(a - b) for a, b in zip(first.coords, second.coords, strict=True)) == 1


@needs_libtpu
def test_a_slice_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="topology='v5e:3x99': "):
        topologies.open_topology("v5e:3x99")
