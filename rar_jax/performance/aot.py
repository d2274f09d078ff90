"""Analyses programs that are compiled for TPUs and GPUs that are not attached: memory, kernels, collectives, roofline.

Memory, kernels and collectives are read from the compiled program. FLOPs of the model come from the formulas of
`performance.costs`, and times are rooflines by the data sheets of `performance.chips`. Nothing is run.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rar_jax.config import Config, sample_options
from rar_jax.performance.collectives import collectives
from rar_jax.performance.costs import (
    decode_work,
    recomputed_flops,
    train_flops,
    vqgan_train_flops,
)
from rar_jax.performance.hlo_text import Program, parse
from rar_jax.performance.kernels import kernels
from rar_jax.performance.programs import compile_decode, compile_step, compile_tokenizer_step, memory
from rar_jax.performance.roofline import summary
from rar_jax.performance.topologies import Topology, open_topology
from rar_jax.tokenizer_config import TokenizerConfig

# The training step, the decode loop, and the training step of a tokenizer.
PROGRAMS = ("train", "sample", "tokenizer")
# The share of a GPU's memory that JAX uses unless XLA_CLIENT_MEM_FRACTION is set.
GPU_SHARE = 0.75


def _traffic(parsed: Program, topology: Topology) -> tuple[dict[str, str], float, float]:
    """Returns a line about each kind of collective, and the bytes that a device sends: in total, and overlapped."""
    found = collectives(parsed, len(topology.devices))
    if topology.chip.is_gpu:
        # The schedule of a GPU program does not tell which transfers are hidden.
        found = [each._replace(overlapped=False) for each in found]
    lines = {}
    for kind in sorted({each.kind for each in found}):
        same = [each for each in found if each.kind == kind]
        count, sent = sum(each.count for each in same), sum(each.count * each.sent for each in same)
        lines[kind] = f"{count}, sending {sent / 1e9:.3f} GB"
        if not topology.chip.is_gpu:
            overlapped = sum(each.count * each.sent for each in same if each.overlapped)
            lines[kind] += f", {overlapped / 1e9:.3f} GB overlapped with computation"
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
    options = sample_options(config)
    itemsize, sizes = jnp.dtype(config.train.dtype).itemsize, options.pass_sizes(config.model)
    passes, modulations = decode_work(config.model, batch_size // num_devices, options.guided, itemsize, sizes)
    return {
        "passes": len(passes),
        "model FLOP": sum(work.flops for work in passes) + modulations,
        "bytes read": sum(work.bytes for work in passes),
    }


def _tokenizer_work(config: TokenizerConfig, num_devices: int) -> dict[str, float]:
    """Returns the FLOPs of a tokenizer's training step on each device."""
    per_image = vqgan_train_flops(config.model, config.data.image_size)
    return {"model FLOP": config.train.batch_size / num_devices * per_image}


def _compiled(
    config: Config | TokenizerConfig, topology: Topology, program: str, batch_size: int
) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """Returns a compiled program and its work on each device, by formula."""
    count = len(topology.devices)
    if program == "sample":
        # First, because it can refuse the config.
        work = _decode_work(config, batch_size, count)
        return compile_decode(config, batch_size, topology), work
    if program == "tokenizer":
        return compile_tokenizer_step(config, topology), _tokenizer_work(config, count)
    return compile_step(config, topology), _train_work(config, count)


def analyse(
    config: Config | TokenizerConfig, topology: str, program: str = "train", batch_size: int = 256
) -> dict[str, dict[str, Any]]:
    """Compiles a program of a config for devices that are not attached, and returns what it needs.

    Args:
      config: the experiment. No data is read. For "tokenizer" it is a `TokenizerConfig`.
      topology: the devices, such as v5e:8x8 or h200:8.
      program: "train" for the training step, "sample" for the decode loop, "tokenizer" for a tokenizer's training step.
      batch_size: number of images decoded at once on all devices. It is used for "sample" alone.

    Returns:
      Section -> name -> value. The names hold the units.

    Raises:
      UserError: the topology is not usable, or the mesh or batch size cannot be divided over its devices.
      DoesNotFitError: the program needs more memory than a device has. The compiler of GPUs never raises this.
    """
    name, topology = topology, open_topology(topology)
    chip = topology.chip
    compiled, work = _compiled(config, topology, program, batch_size)
    used, parsed = memory(compiled), parse(compiled.as_text())
    lines, sent, overlapped = _traffic(parsed, topology)
    counted = summary(kernels(parsed), chip)
    sums = counted["kernels per device"]
    flops = work["model FLOP"] + work.get("recomputed FLOP", 0)
    waits = (sent - overlapped) / chip.link_rate
    step = sums["roofline with launches, ms"] / 1e3 + waits
    if program == "sample" and work["passes"] > 1:
        # The first pass, which reads the prefix, is not in the loop.
        sums["kernels of a pass"] = sums["kernels in loops"] / (work["passes"] - 1)
    return {
        f"{config.name}, {program}, on {name}": {
            "devices": len(topology.devices),
            "kind": topology.devices[0].device_kind,
            "these figures": "by count, not run",
        },
        "memory per device, by the compiler": used
        | {"total, GB": sum(used.values()), "available, GB": chip.memory / 1e9}
        | ({"available to JAX by default, GB": GPU_SHARE * chip.memory / 1e9} if chip.is_gpu else {}),
        "work per device, by formula": work,
        "collectives per device, by the compiler": lines | {"sent, GB": sent / 1e9},
        "roofline, by the data sheet": {
            "products, ms": 1e3 * flops / chip.flop_rate,
            "products without recomputation, ms": 1e3 * work["model FLOP"] / chip.flop_rate,
            "collectives, ms": 1e3 * sent / chip.link_rate,
            "collectives not overlapped, ms": 1e3 * waits,
            "kernels, launches, collectives, ms": 1e3 * step,
            "utilisation, counted, %": 100 * work["model FLOP"] / chip.flop_rate / step,
        },
    } | {f"{section}, by count, not run": values for section, values in counted.items()}
