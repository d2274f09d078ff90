"""Compiles the training step or the decode loop for a TPU slice that is not attached, and analyses the program.

The package libtpu contains the TPU compiler, which runs on any x86 Linux machine. Memory and collectives are what the
compiler reports for the real program. FLOPs come from the formulas of `performance.costs`, and times are rooflines by
the data sheets of `performance.chips`.
"""

import functools
import importlib.util
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Sharding

from rar_jax.config import Config, mesh_shape, sample_options
from rar_jax.errors import UserError
from rar_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from rar_jax.performance.chips import CHIPS, Chip
from rar_jax.performance.collectives import collectives
from rar_jax.performance.costs import decode_modulation_flops, decode_passes, recomputed_flops, train_flops
from rar_jax.sampling.cached import prepare
from rar_jax.sampling.decode import decode
from rar_jax.sampling.sampler import jit_on_own_images
from rar_jax.training.program import make_program

# The training step, and the decode loop.
PROGRAMS = ("train", "sample")

# The two forms in which the compiler reports how much memory a program needs and how much there is.
_OUT_OF_MEMORY = re.compile(r"\(([\d.]+)([MG])\) exceeds available HBM \(([\d.]+)G\)|Used ([\d.]+)([MG]) of ([\d.]+)G")


class DoesNotFitError(Exception):
    """The program needs more memory than a device has. Both sizes are in GB."""

    def __init__(self, needed: float, available: float):
        super().__init__(f"needs {needed:.1f} of {available:.1f} GB")


def _prepare_libtpu() -> None:
    """Sets the environment variables that libtpu reads when it is loaded, unless they are already set."""
    # Without the first, libtpu asks the metadata server of a cloud machine which TPU it has. The second lets several
    # processes compile at the same time. The last two only avoid log messages about an unknown machine: the topology
    # is requested by name.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")


def open_topology(name: str) -> tuple[list[jax.Device], Chip]:
    """Returns the devices of a TPU slice, which programs can be compiled for, and the data sheet of one device.

    Args:
      name: the slice, such as v5e:8x8 or v5p:2x2x4.

    Raises:
      UserError: the slice does not exist, or libtpu is not installed.
    """
    generation = name.partition(":")[0]
    kinds = [kind for kind, chip in CHIPS.items() if "tpu" in chip.source]
    if generation not in kinds:
        raise UserError(f"topology={name!r} must begin with one of {', '.join(kinds)}, such as v5e:8x8")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology={name!r} needs the TPU compiler, the package libtpu: install it with launch/install.sh tpu, "
            "which also works without a TPU"
        )
    _prepare_libtpu()
    try:
        devices = topologies.get_topology_desc(
            # JAX sees the two cores of a v4 chip as one device.
            platform="tpu",
            topology_name=name,
            **({"chip_config_name": "megacore"} if generation == "v4" else {}),
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology={name!r}: {str(error).splitlines()[0]}") from None
    return list(devices), CHIPS[generation]


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    """Returns a tree of shapes with shardings, which are a tree of the same structure or one sharding for all."""
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program. Raises a `DoesNotFitError` if it needs more memory than a device has."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        match = _OUT_OF_MEMORY.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not match:
            raise
        needed, unit, available = [group for group in match.groups() if group]
        gib = 2**30 / 1e9
        raise DoesNotFitError(float(needed) * gib / (1 if unit == "G" else 1024), float(available) * gib) from None


def compile_step(config: Config, devices: list[jax.Device]) -> jax.stages.Compiled:
    """Compiles the training step of a config.

    Raises:
      UserError: the mesh or the batch size cannot be divided over the devices.
      DoesNotFitError: the program needs more memory than a device has.
    """
    mesh = make_mesh(mesh_shape(config, len(devices)), devices)
    program = make_program(config)
    state = _with_shardings(jax.eval_shape(program.init), program.shardings(mesh))
    batch_size = config.train.batch_size
    batch = {
        "tokens": jax.ShapeDtypeStruct((batch_size, config.model.num_tokens), jnp.int32),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    return _compile(program.jit_step(mesh).lower(state, _with_shardings(batch, batch_sharding(mesh))))


def compile_decode(config: Config, batch_size: int, devices: list[jax.Device]) -> jax.stages.Compiled:
    """Compiles the decode loop of a config. Each device has all the weights and decodes its share of the images.

    Raises:
      UserError: the batch size is not a multiple of the number of devices.
      DoesNotFitError: the program needs more memory than a device has.
    """
    if batch_size % len(devices):
        raise UserError(f"batch_size={batch_size} must be divisible by the {len(devices)} devices of the topology")
    mesh = make_mesh((len(devices), 1), devices)
    program = make_program(config)
    model = program.model
    params = jax.eval_shape(functools.partial(prepare, model, few_rows=False), jax.eval_shape(program.init).params)
    images = _with_shardings(jax.ShapeDtypeStruct((batch_size,), jnp.int32), batch_sharding(mesh))
    options = sample_options(config)
    rest = jax.eval_shape(lambda: {"key": jax.random.key(0)} | options.arguments(model.config))
    shared = _with_shardings((params, rest), replicated(mesh))
    program = jit_on_own_images(decode, model, options.plan(model.config), mesh)
    return _compile(program.lower(shared[0], {"labels": images, "numbers": images}, shared[1]))


def memory(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Returns the memory that a program needs on each device, in GB, as reported by the compiler."""
    stats = compiled.memory_analysis()
    new_output = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return {
        "arguments, GB": stats.argument_size_in_bytes / 1e9,
        "temporaries, GB": stats.temp_size_in_bytes / 1e9,
        "output not stored in the arguments, GB": new_output / 1e9,
        "program, GB": stats.generated_code_size_in_bytes / 1e9,
    }


def _traffic(compiled: jax.stages.Compiled, num_devices: int) -> tuple[dict[str, str], float, float]:
    """Returns a line about each kind of collective, and the bytes that a device sends: in total, and overlapped."""
    found = collectives(compiled.as_text(), num_devices)
    lines = {}
    for kind in sorted({each.kind for each in found}):
        same = [each for each in found if each.kind == kind]
        count, sent = sum(each.count for each in same), sum(each.count * each.sent for each in same)
        overlapped = sum(each.count * each.sent for each in same if each.overlapped)
        lines[kind] = f"{count}, sending {sent / 1e9:.3f} GB, {overlapped / 1e9:.3f} GB overlapped with computation"
    total = sum(each.count * each.sent for each in found)
    return lines, total, sum(each.count * each.sent for each in found if each.overlapped)


def _train_work(config: Config, num_devices: int) -> dict[str, float]:
    """Returns the FLOPs of a training step on each device."""
    images = config.train.batch_size / num_devices
    return {
        "model FLOP": images * train_flops(config.model),
        "recomputed FLOP": images * recomputed_flops(config.model, config.train.remat),
    }


def _decode_work(config: Config, batch_size: int, num_devices: int) -> dict[str, float]:
    """Returns the FLOPs of a decode loop on each device, and the bytes that it must read."""
    options, images = sample_options(config), batch_size // num_devices
    itemsize, sizes = jnp.dtype(config.train.dtype).itemsize, options.plan(config.model).sizes
    passes = list(decode_passes(config.model, (2 if options.guided else 1) * images, itemsize, sizes))
    flops = sum(work.flops for work in passes) + decode_modulation_flops(config.model, images + options.guided)
    return {"model FLOP": flops, "bytes read": sum(work.bytes for work in passes)}


def analyse(config: Config, topology: str, program: str = "train", batch_size: int = 256) -> dict[str, dict[str, Any]]:
    """Compiles a program of a config for a TPU slice and returns its memory, work, collectives and roofline.

    Args:
      config: the experiment. No data is read.
      topology: the slice, such as v5e:8x8.
      program: "train" for the training step, "sample" for the decode loop.
      batch_size: number of images decoded at once on all devices. It is not used for training.

    Returns:
      Section -> name -> value. The names hold the units.

    Raises:
      UserError: the topology is not usable, or the mesh or batch size cannot be divided over its devices.
      DoesNotFitError: the program needs more memory than a device has.
    """
    devices, chip = open_topology(topology)
    if program == "train":
        compiled, work = compile_step(config, devices), _train_work(config, len(devices))
    else:
        compiled = compile_decode(config, batch_size, devices)
        work = _decode_work(config, batch_size, len(devices))
    used = memory(compiled)
    lines, sent, overlapped = _traffic(compiled, len(devices))
    flops = work["model FLOP"] + work.get("recomputed FLOP", 0)
    # Each argument is read and each result written at least once, and each temporary both written and read.
    least = work.get("bytes read", 1e9 * (2 * used["arguments, GB"] + 2 * used["temporaries, GB"]))
    return {
        f"{config.name}, {program}, on {topology}": {"devices": len(devices), "kind": devices[0].device_kind},
        "memory per device, by the compiler": used
        | {"total, GB": sum(used.values()), "available, GB": chip.memory / 1e9},
        "work per device, by formula": work,
        "collectives per device, by the compiler": lines | {"sent, GB": sent / 1e9},
        "roofline, by the data sheet": {
            "products, ms": 1e3 * flops / chip.flop_rate,
            "products without recomputation, ms": 1e3 * work["model FLOP"] / chip.flop_rate,
            "memory, at least, ms": 1e3 * least / chip.bandwidth,
            "collectives, ms": 1e3 * sent / chip.link_rate,
            "collectives not overlapped, ms": 1e3 * (sent - overlapped) / chip.link_rate,
        },
    }
