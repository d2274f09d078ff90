"""Compiles for TPUs that are not here: python -m rar_jax aot --config=configs/rar_xxl.py --topology=v5e:8x8.

The package libtpu holds the TPU's compiler, which runs on any x86 Linux machine: memory and collectives are what it
says of the real program. FLOPs are the formula's (`costs`); the times are a roofline by the chips' data sheets.
"""

import functools
import importlib.util
import os
import re
from typing import Any

# Before JAX starts: no TPU is to be looked for, nor another process that compiles. The last two only spare libtpu's
# complaints that it does not know the machine; the topology is asked for by name.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import Sharding
from ml_collections import config_flags

from rar_jax.commands import cli
from rar_jax.config import Config, mesh_shape, sample_options, without_data
from rar_jax.errors import UserError
from rar_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from rar_jax.performance.benchmarks.report import show
from rar_jax.performance.chips import CHIPS, Chip
from rar_jax.performance.collectives import collectives
from rar_jax.performance.costs import decode_modulation_flops, decode_steps, recomputed_flops, train_flops
from rar_jax.sampling.decode import prepare
from rar_jax.sampling.sampler import jit_decode
from rar_jax.training.program import make_program

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/; its data is not read.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "The slice, such as v5e:8x8, v4:4x4x4, v5p:2x2x4 or v6e:4x4.")
_WHAT = flags.DEFINE_enum("what", "train", ("train", "sample"), "The training step or the decode loop.")
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images decoded at once, on all chips (--what=sample).", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Also write the results to this file.")

_OUT_OF_MEMORY = re.compile(r"\(([\d.]+)([MG])\) exceeds available HBM \(([\d.]+)G\)|Used ([\d.]+)([MG]) of ([\d.]+)G")


class DoesNotFitError(Exception):
    """The program needs more memory than a chip has; both in GB."""

    def __init__(self, needed: float, available: float):
        super().__init__(f"needs {needed:.1f} of {available:.1f} GB")


def open_topology(name: str) -> tuple[list[jax.Device], Chip]:
    """The devices of a slice, to compile for, and what one of them is, a chip.

    Raises:
      UserError: there is no such slice, or no compiler for it here.
    """
    generation = name.partition(":")[0]
    kinds = [kind for kind, chip in CHIPS.items() if "tpu" in chip.source]
    if generation not in kinds:
        raise UserError(f"--topology={name} must begin with one of {', '.join(kinds)}, as v5e:8x8 does")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} needs the TPU's compiler, the package libtpu: launch/install.sh tpu installs it, also "
            "where there is no TPU"
        )
    try:
        devices = topologies.get_topology_desc(
            # The two cores of a v4 are one device, as they are to JAX on a real one.
            platform="tpu",
            topology_name=name,
            **({"chip_config_name": "megacore"} if generation == "v4" else {}),
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology={name}: {str(error).splitlines()[0]}") from None
    return list(devices), CHIPS[generation]


def _abstract(shapes: Any, layout: Any) -> Any:
    """A tree of shapes with shardings: one of its own, or the same for all."""
    if isinstance(layout, Sharding):
        layout = jax.tree.map(lambda _: layout, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout)


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
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
    """The training step of a config on so many devices.

    Raises:
      UserError: the config does not fit the devices. DoesNotFitError: nor does the program a device's memory.
    """
    mesh = make_mesh(mesh_shape(config, len(devices)), devices)
    program = make_program(config)
    state = _abstract(jax.eval_shape(program.init), program.shardings(mesh))
    rows = config.train.batch_size
    batch = {
        "tokens": jax.ShapeDtypeStruct((rows, config.model.grid_side**2), jnp.int32),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    return _compile(program.jit_step(mesh).lower(state, _abstract(batch, batch_sharding(mesh))))


def compile_decode(config: Config, batch_size: int, devices: list[jax.Device]) -> jax.stages.Compiled:
    """The decode loop of a config, its weights on every device, each with its share of the images.

    Raises:
      DoesNotFitError: the program needs more memory than a device has.
    """
    mesh = make_mesh((len(devices), 1), devices)
    program = make_program(config)
    model = program.model
    params = jax.eval_shape(functools.partial(prepare, model, few_sequences=False), jax.eval_shape(program.init).params)
    rows = _abstract(jax.ShapeDtypeStruct((batch_size,), jnp.int32), batch_sharding(mesh))
    rest = {"key": jax.random.key(0)} | sample_options(config).arguments(model.config)
    rest = _abstract(jax.eval_shape(lambda: rest), replicated(mesh))
    return _compile(jit_decode(model, mesh).lower(_abstract(params, replicated(mesh)), rows, rows, rest))


def memory(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Of a device, in GB, by the compiler."""
    stats = compiled.memory_analysis()
    kept = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return {
        "arguments, GB": stats.argument_size_in_bytes / 1e9,
        "temporaries, GB": stats.temp_size_in_bytes / 1e9,
        "output beside the arguments it replaces, GB": kept / 1e9,
        "program, GB": stats.generated_code_size_in_bytes / 1e9,
    }


def _traffic(compiled: jax.stages.Compiled, num_devices: int) -> tuple[dict[str, str], float, float]:
    """The collectives for people, and the bytes that a device sends: in all, and of it overlapped with computing."""
    found = collectives(compiled.as_text(), num_devices)
    said = {}
    for kind in sorted({each.kind for each in found}):
        of_kind = [each for each in found if each.kind == kind]
        count, sent = sum(each.count for each in of_kind), sum(each.count * each.sent for each in of_kind)
        overlapped = sum(each.count * each.sent for each in of_kind if each.overlapped)
        said[kind] = f"{count} that send {sent / 1e9:.3f} GB, {overlapped / 1e9:.3f} of it beside products"
    every = sum(each.count * each.sent for each in found)
    return said, every, sum(each.count * each.sent for each in found if each.overlapped)


def _work(config: Config, num_devices: int) -> dict[str, float]:
    """Of a device: FLOPs, and for the decode loop the bytes it must read."""
    model = make_program(config).model
    if _WHAT.value == "train":
        images = config.train.batch_size / num_devices
        return {
            "model FLOP": images * train_flops(model.config),
            "recomputed FLOP": images * recomputed_flops(model.config, model.remat),
        }
    images = _BATCH.value // num_devices
    guided = sample_options(config).guided
    steps = list(decode_steps(model.config, (2 if guided else 1) * images, np.dtype(model.dtype).itemsize))
    flops = sum(step.flops for step in steps) + decode_modulation_flops(model.config, images + guided)
    return {"model FLOP": flops, "bytes read": sum(step.bytes for step in steps)}


def analyse(config: Config, devices: list[jax.Device], chip: Chip) -> dict[str, dict[str, Any]]:
    """Compiles what `--what` says and tells its costs, by section.

    Raises:
      DoesNotFitError: the program needs more memory than a device has.
    """
    train = _WHAT.value == "train"
    compiled = compile_step(config, devices) if train else compile_decode(config, _BATCH.value, devices)
    used, work = memory(compiled), _work(config, len(devices))
    said, sent, overlapped = _traffic(compiled, len(devices))
    flops = work["model FLOP"] + work.get("recomputed FLOP", 0)
    # Each argument is read and each result written once at least, each temporary both.
    least = work.get("bytes read", 1e9 * (2 * used["arguments, GB"] + 2 * used["temporaries, GB"]))
    return {
        "memory of a device, by the compiler": used | {"total, GB": sum(used.values())},
        "work of a device, by formula": work,
        "collectives of a device, by the compiler": said | {"sent, GB": sent / 1e9},
        "roofline, by the data sheet": {
            "products, ms": 1e3 * flops / chip.flop_rate,
            "products of the model FLOP alone, ms": 1e3 * work["model FLOP"] / chip.flop_rate,
            "memory, at least, ms": 1e3 * least / chip.bandwidth,
            "collectives, ms": 1e3 * sent / chip.link_rate,
            "of them not beside products, ms": 1e3 * (sent - overlapped) / chip.link_rate,
        },
    }


def _try(config: Config) -> str:
    if _WHAT.value == "sample":
        return f"--batch_size={max(_BATCH.value // 2, 1)} or more chips"
    if config.train.remat != "block":
        return "--config.train.remat=block"
    return f"--config.train.accumulation={2 * config.train.accumulation}, a larger --config.mesh.fsdp or more chips"


def main(argv):
    del argv
    with cli.user_errors():
        config = without_data(_CONFIG.value)
        if _TOPOLOGY.value is None:
            raise UserError("name a slice, such as --topology=v5e:8x8")
        devices, chip = open_topology(_TOPOLOGY.value)
        mesh_shape(config, len(devices))
        if _WHAT.value == "sample" and _BATCH.value % len(devices):
            raise UserError(f"--batch_size={_BATCH.value} must be divisible by the {len(devices)} chips")
    what = f"{config.name}, {_WHAT.value}, on {_TOPOLOGY.value}"
    try:
        with cli.user_errors():
            results = analyse(config, devices, chip)
    except DoesNotFitError as error:
        cli.fail(f"{what}: does not fit: {error}; try {_try(config)}", cli.FAILURE)
    show({what: {"devices": len(devices), "kind": devices[0].device_kind}} | results, _JSON.value)
    total = results["memory of a device, by the compiler"]["total, GB"]
    print(f"fits: {total:.1f} of {chip.memory / 1e9:.1f} GB a device")


if __name__ == "__main__":
    cli.run(main)
