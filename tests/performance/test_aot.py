"""AOT analysis. The tests that compile need the package libtpu, and are skipped where it is not installed."""

import importlib.util
import os
import runpy
import subprocess
import sys

import jax
import pytest
from conftest import ROOT

from rar_jax.config import without_data
from rar_jax.errors import UserError
from rar_jax.parallel.mesh import make_mesh
from rar_jax.performance import aot
from rar_jax.performance.chips import CHIPS
from rar_jax.performance.collectives import collectives
from rar_jax.performance.costs import train_flops

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")

IMPORT = """
import os
import jax
before = dict(os.environ)
import absl.flags, rar_jax.performance.aot
assert dict(os.environ) == before
assert not [name for name in absl.flags.FLAGS.flags_by_module_dict() if name.startswith("rar_jax")]
"""


def config_of(name, **sections):
    fields = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
    for section, values in sections.items():
        fields[section].update(values)
    return without_data(fields)


def test_an_import_changes_no_environment_and_defines_no_flag():
    subprocess.run([sys.executable, "-c", IMPORT], check=True, timeout=120)


@pytest.fixture
def own_environment(monkeypatch):
    """Restores the environment after the test."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_libtpu_is_given_only_what_is_missing(own_environment):
    os.environ.pop("TPU_SKIP_MDS_QUERY", None)
    os.environ["TPU_ACCELERATOR_TYPE"] = "v6e-8"
    aot._prepare_libtpu()
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1" and os.environ["TPU_ACCELERATOR_TYPE"] == "v6e-8"


def test_an_unknown_generation_is_refused():
    with pytest.raises(UserError, match="topology='h100:8' must begin with one of v4, v5e, v5p, v6e, such as v5e:8x8"):
        aot.open_topology("h100:8")


def test_a_missing_compiler_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the TPU compiler, the package libtpu: install it with launch/install"):
        aot.open_topology("v5e:2x2")


class Lowered:
    """A program whose compilation fails."""

    def __init__(self, message):
        self.message = message

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.message)


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        ("RESOURCE_EXHAUSTED: (20.00G) exceeds available HBM (15.75G)", "needs 21.5 of 16.9 GB"),
        ("RESOURCE_EXHAUSTED: Used 512.00M of 0.25G hbm", "needs 0.5 of 0.3 GB"),
    ],
)
def test_out_of_memory_is_reported_with_both_sizes(message, sizes):
    with pytest.raises(aot.DoesNotFitError, match=sizes):
        aot._compile(Lowered(message))


@pytest.mark.parametrize("message", ["INTERNAL: Used 512.00M of 0.25G hbm", "RESOURCE_EXHAUSTED: too many registers"])
def test_another_error_of_the_compiler_is_raised_as_it_is(message):
    with pytest.raises(jax.errors.JaxRuntimeError, match=message.split(":")[0]):
        aot._compile(Lowered(message))


@pytest.mark.parametrize("batch_size", [3, 12])
def test_a_batch_must_be_divisible_by_the_devices(batch_size):
    with pytest.raises(UserError, match=f"batch_size={batch_size} must be divisible by the 8 devices of the topology"):
        aot.compile_decode(config_of("digits"), batch_size, jax.devices())


def test_an_analysis_has_the_sections_and_their_sums(monkeypatch):
    """The eight devices here stand in for a slice, so that the analysis is tested without libtpu."""
    monkeypatch.setattr(aot, "open_topology", lambda name: (jax.devices(), CHIPS["v5e"]))
    config = config_of("digits", model={"depth": 1}, mesh={"fsdp": 8})
    results = aot.analyse(config, "v5e:2x4")
    assert results["digits, train, on v5e:2x4"] == {"devices": 8, "kind": "cpu"}
    used = dict(results["memory per device, by the compiler"])
    assert used.pop("available, GB") == 16 * 2**30 / 1e9
    assert used.pop("total, GB") == pytest.approx(sum(used.values())) and used["arguments, GB"] > 0
    work, roofline = results["work per device, by formula"], results["roofline, by the data sheet"]
    assert work["model FLOP"] == config.train.batch_size / 8 * train_flops(config.model)
    assert roofline["products, ms"] == pytest.approx(1e3 * sum(work.values()) / 197e12)
    sent = results["collectives per device, by the compiler"]["sent, GB"]
    assert sent > 0 and roofline["collectives, ms"] == pytest.approx(1e3 * sent / 200)
    # The decode loop sends nothing, and reads its weights at each of its steps.
    decoded = aot.analyse(config, "v5e:2x4", "sample", batch_size=8)
    assert decoded["collectives per device, by the compiler"] == {"sent, GB": 0}
    assert decoded["work per device, by formula"]["bytes read"] > 1e9 * used["arguments, GB"]


@needs_libtpu
def test_a_small_step():
    """Four chips share the training state."""
    devices, _ = aot.open_topology("v5e:2x2")
    config = config_of("digits", mesh={"fsdp": 4})
    compiled = aot.compile_step(config, devices)
    used = aot.memory(compiled)
    assert 0 < used["arguments, GB"] and sum(used.values()) < 0.1
    found = collectives(compiled.as_text(), 4)
    # The kernels of every block are gathered in both passes, and their gradients are summed.
    assert sum(each.count for each in found) >= 3 * 2 * config.model.depth
    assert {each.devices for each in found} <= {2, 4}


@needs_libtpu
def test_a_small_decode_loop():
    devices, _ = aot.open_topology("v5e:2x2")
    compiled = aot.compile_decode(config_of("digits", model={"depth": 1}), 8, devices)
    assert 0 < sum(aot.memory(compiled).values()) < 0.1
    assert not collectives(compiled.as_text(), 4)


@needs_libtpu
def test_a_step_that_does_not_fit_is_reported_with_both_sizes():
    devices, _ = aot.open_topology("v5e:2x2")
    config = config_of("rar_xxl", train={"batch_size": 256})
    with pytest.raises(aot.DoesNotFitError, match=r"needs \d+\.\d of 16\.9 GB"):
        aot.compile_step(config, devices)


@needs_libtpu
@pytest.mark.parametrize("name", ["v4:2x2x2", "v5p:2x2x2", "v6e:2x4"])
@pytest.mark.parametrize("shape", [(8,), (1, 8), (4, 2), (2, 4), (2, 2, 2), (1, 4, 2)])
def test_a_mesh_of_every_shape_can_be_made_on_every_kind_of_slice(name, shape):
    """Each device is a chip."""
    devices, _ = aot.open_topology(name)
    assert len(devices) == make_mesh(shape, devices).size == 8


@needs_libtpu
def test_a_mesh_axis_can_use_part_of_a_torus_axis():
    devices, _ = aot.open_topology("v5e:8x8")
    mesh = make_mesh((8, 4, 2), devices)
    assert len(set(mesh.devices.flat)) == 64
    # The devices that communicate most are neighbours.
    for first, second in mesh.devices.reshape(-1, 2):
        assert sum(abs(a - b) for a, b in zip(first.coords, second.coords, strict=True)) == 1


@needs_libtpu
def test_a_slice_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="topology='v5e:3x99': "):
        aot.open_topology("v5e:3x99")


@needs_libtpu
@pytest.mark.long
@pytest.mark.parametrize(("name", "topology"), [("rar_b", "v5e:4x4"), ("rar_xxl", "v5e:8x8")])
def test_the_recipe_fits(name, topology):
    """At the paper's batch of 2,048, sending at the links' rate takes less than a fifth of the time of the products."""
    devices, chip = aot.open_topology(topology)
    config = config_of(name, train={"remat": "block"}, mesh={"fsdp": 8})
    compiled = aot.compile_step(config, devices)
    assert sum(aot.memory(compiled).values()) < chip.memory / 1e9
    sent = sum(each.count * each.sent for each in collectives(compiled.as_text(), len(devices)))
    flops = config.train.batch_size / len(devices) * train_flops(config.model)
    assert sent / chip.link_rate < 0.2 * flops / chip.flop_rate
