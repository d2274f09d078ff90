"""Compiling for devices that are not attached. What needs libtpu or the GPU compiler is skipped without it."""

import importlib.util

import jax
import pytest
from running import config_without_data

from rar_jax.errors import UserError
from rar_jax.performance import programs
from rar_jax.performance.chips import CHIPS
from rar_jax.performance.collectives import collectives
from rar_jax.performance.costs import train_flops
from rar_jax.performance.hlo_text import parse
from rar_jax.performance.kernels import kernels
from rar_jax.performance.topologies import Topology, open_topology

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")

needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="jax-cuda12-plugin is not installed"
)

# The eight devices here stand in for a slice.
HERE = Topology(jax.devices(), CHIPS["v5e"], {})


class Lowered:
    """A program whose compilation fails."""

    def __init__(self, message):
        self.message = message

    def compile(self, compiler_options):
        raise jax.errors.JaxRuntimeError(self.message)


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        ("RESOURCE_EXHAUSTED: (20.00G) exceeds available HBM (15.75G)", "needs 21.5 of 16.9 GB"),
        ("RESOURCE_EXHAUSTED: Used 512.00M of 0.25G hbm", "needs 0.5 of 0.3 GB"),
    ],
)
def test_out_of_memory_is_reported_with_both_sizes(message, sizes):
    with pytest.raises(programs.DoesNotFitError, match=sizes):
        programs._compile(Lowered(message), HERE)


@pytest.mark.parametrize("message", ["INTERNAL: Used 512.00M of 0.25G hbm", "RESOURCE_EXHAUSTED: too many registers"])
def test_another_error_of_the_compiler_is_raised_as_it_is(message):
    with pytest.raises(jax.errors.JaxRuntimeError, match=message.split(":")[0]):
        programs._compile(Lowered(message), HERE)


@pytest.mark.parametrize("batch_size", [3, 12])
def test_a_batch_must_be_divisible_by_the_devices(batch_size):
    with pytest.raises(UserError, match=f"batch_size={batch_size} must be divisible by the 8 devices"):
        programs.compile_decode(config_without_data("digits"), batch_size, HERE)


@needs_libtpu
def test_a_small_step():
    """Four chips share the training state."""
    topology = open_topology("v5e:2x2")
    config = config_without_data("digits", mesh={"fsdp": 4})
    compiled = programs.compile_step(config, topology)
    used = programs.memory(compiled)
    assert 0 < used["arguments, GB"] and sum(used.values()) < 0.1
    found = collectives(parse(compiled.as_text()), 4)
    # The kernels of every block are gathered in both passes, and their gradients are summed.
    assert sum(each.count for each in found) >= 3 * 2 * config.model.depth
    assert {each.devices for each in found} <= {2, 4}


@needs_libtpu
def test_a_small_decode_loop():
    topology = open_topology("v5e:2x2")
    compiled = programs.compile_decode(config_without_data("digits", model={"depth": 1}), 8, topology)
    assert 0 < sum(programs.memory(compiled).values()) < 0.1
    assert not collectives(parse(compiled.as_text()), 4)


@needs_plugin
def test_a_small_step_for_gpus():
    """Two GPUs share the training state. The compiler writes products as library calls."""
    config = config_without_data("digits", model={"depth": 1}, mesh={"fsdp": 2})
    program = parse(programs.compile_step(config, open_topology("h200:2")).as_text())
    assert {each.devices for each in collectives(program, 2)} == {2}
    found = kernels(program)
    flops = sum(kernel.count * kernel.flops for kernel in found)
    # The products of padded attention are whole, and those of the model count half of them.
    expected = config.train.batch_size / 2 * train_flops(config.model)
    assert expected < flops < 1.5 * expected
    assert any(kernel.line.startswith("models/rar.py:") for kernel in found)


@needs_libtpu
def test_a_step_that_does_not_fit_is_reported_with_both_sizes():
    topology = open_topology("v5e:2x2")
    config = config_without_data("rar_xxl", train={"batch_size": 256})
    with pytest.raises(programs.DoesNotFitError, match=r"needs \d+\.\d of 16\.9 GB"):
        programs.compile_step(config, topology)


@needs_libtpu
@pytest.mark.long
@pytest.mark.parametrize(("name", "topology"), [("rar_b", "v5e:4x4"), ("rar_xxl", "v5e:8x8")])
def test_the_recipe_fits(name, topology):
    """At the paper's batch of 2,048, sending at the links' rate takes less than a fifth of the time of the products."""
    topology = open_topology(topology)
    config = config_without_data(name, train={"remat": "block"}, mesh={"fsdp": 8})
    compiled = programs.compile_step(config, topology)
    assert sum(programs.memory(compiled).values()) < topology.chip.memory / 1e9
    sent = sum(each.count * each.sent for each in collectives(parse(compiled.as_text()), len(topology.devices)))
    flops = config.train.batch_size / len(topology.devices) * train_flops(config.model)
    assert sent / topology.chip.link_rate < 0.2 * flops / topology.chip.flop_rate
