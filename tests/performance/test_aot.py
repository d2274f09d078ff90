"""Programs compiled for TPUs by the package libtpu; skipped where it is not installed."""

import runpy

import pytest
from conftest import ROOT

pytest.importorskip("libtpu")

from rar_jax.config import without_data
from rar_jax.parallel.mesh import make_mesh
from rar_jax.performance import aot
from rar_jax.performance.collectives import collectives
from rar_jax.performance.costs import train_flops
from rar_jax.training.program import make_program


def config_of(name, **sections):
    fields = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
    for section, values in sections.items():
        fields[section].update(values)
    return without_data(fields)


def test_a_small_step():
    """On four chips, the state in quarters."""
    devices, _ = aot.open_topology("v5e:2x2")
    config = config_of("digits", mesh={"fsdp": 4})
    compiled = aot.compile_step(config, devices)
    used = aot.memory(compiled)
    assert 0 < used["arguments, GB"] and sum(used.values()) < 0.1
    found = collectives(compiled.as_text(), 4)
    # Every block's kernels are gathered in each of the passes, and their gradients summed.
    assert sum(each.count for each in found) >= 3 * 2 * config.model.depth
    assert {each.devices for each in found} <= {2, 4}


def test_a_small_decode_loop():
    devices, _ = aot.open_topology("v5e:2x2")
    compiled = aot.compile_decode(config_of("digits", model={"depth": 1}), 8, devices)
    assert 0 < sum(aot.memory(compiled).values()) < 0.1
    assert not collectives(compiled.as_text(), 4)


def test_what_does_not_fit_is_said_with_both_sizes():
    devices, _ = aot.open_topology("v5e:2x2")
    config = config_of("rar_xxl", train={"batch_size": 256})
    with pytest.raises(aot.DoesNotFitError, match=r"needs \d+\.\d of 16\.9 GB"):
        aot.compile_step(config, devices)


@pytest.mark.parametrize("name", ["v4:2x2x2", "v5p:2x2x2", "v6e:2x4"])
@pytest.mark.parametrize("shape", [(8,), (1, 8), (4, 2), (2, 4), (2, 2, 2), (1, 4, 2)])
def test_a_mesh_of_every_shape_lies_on_a_slice_of_every_kind(name, shape):
    """Each device is a chip."""
    devices, _ = aot.open_topology(name)
    assert len(devices) == make_mesh(shape, devices).size == 8


def test_an_axis_takes_a_part_of_one_of_the_torus():
    devices, _ = aot.open_topology("v5e:8x8")
    mesh = make_mesh((8, 4, 2), devices)
    assert len(set(mesh.devices.flat)) == 64
    # Those that send each other most are neighbours.
    for first, second in mesh.devices.reshape(-1, 2):
        assert sum(abs(a - b) for a, b in zip(first.coords, second.coords, strict=True)) == 1


@pytest.mark.parametrize(("name", "message"), [("h100:8", "must begin with one of"), ("v5e:3x99", "v5e:3x99: ")])
def test_no_such_slice(name, message):
    with pytest.raises(ValueError, match=message):
        aot.open_topology(name)


@pytest.mark.long
@pytest.mark.parametrize(("name", "topology"), [("rar_b", "v5e:4x4"), ("rar_xxl", "v5e:8x8")])
def test_the_recipe_fits(name, topology):
    """At the paper's batch of 2,048; what is sent, at the links' rate, takes under a fifth of the products' time."""
    devices, chip = aot.open_topology(topology)
    config = config_of(name, train={"remat": "block"}, mesh={"fsdp": 8})
    compiled = aot.compile_step(config, devices)
    assert sum(aot.memory(compiled).values()) < chip.memory / 1e9
    sent = sum(each.count * each.sent for each in collectives(compiled.as_text(), len(devices)))
    flops = config.train.batch_size / len(devices) * train_flops(make_program(config).model)
    assert sent / chip.link_rate < 0.2 * flops / chip.flop_rate
