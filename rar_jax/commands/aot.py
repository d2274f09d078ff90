"""Compiles for TPUs or GPUs that are not attached, and prints what the program needs.

    python -m rar_jax aot --config=configs/rar_xxl.py --topology=v5e:8x8
    python -m rar_jax aot --config=configs/rar_b.py --topology=h200:1 --config.train.batch_size=256
    python -m rar_jax aot --config=configs/tokenizers/f16.py --what=tokenizer --topology=h200:1
    python -m rar_jax aot --table --json=table.json

It prints the memory, kernels, collectives and roofline of the training step or the decode loop, and exits with code 1
if the program does not fit a chip's memory. The compiler must be installed: the package libtpu for TPUs, and
jax-cuda12-plugin for GPUs.
"""

import math

import jax
from absl import flags
from ml_collections import config_flags

from rar_jax.commands import cli
from rar_jax.config import Config, without_data
from rar_jax.errors import UserError
from rar_jax.performance import aot, table
from rar_jax.performance.benchmarks.report import check_json, show
from rar_jax.performance.programs import DoesNotFitError
from rar_jax.tokenizer_config import TokenizerConfig, without_images

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the experiment. Its data is not read.")
cli.declare_schema(Config, TokenizerConfig)
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "TPU slice, such as v5e:8x8, v4:4x4x4, v5p:2x2x4 or v6e:4x4, or GPUs, such as h200:1, h100:8, a100:8, or h200:2x8 "
    "for two nodes of eight.",
)
_WHAT = flags.DEFINE_enum(
    "what",
    "train",
    aot.PROGRAMS,
    "Program to compile: train is the training step, sample the decode loop, tokenizer a tokenizer's training step.",
)
_BATCH = flags.DEFINE_integer(
    "batch_size", 256, "Number of images decoded at once on all chips, with --what=sample.", lower_bound=1
)
_TABLE = flags.DEFINE_bool(
    "table",
    False,
    "Compile the paper's recipe for every size of the model, on --topology or on each topology of docs/performance.md, "
    "and print a table. --config is not used.",
)
_JSON = flags.DEFINE_string(
    "json",
    None,
    "File to which the results are also written. With --table it gets all variants that are compiled, one by one, and "
    "those that it already has are not compiled again.",
)


def _read_config() -> Config | TokenizerConfig:
    """Returns the config of the program."""
    return without_images(_CONFIG.value) if _WHAT.value == "tokenizer" else without_data(_CONFIG.value)


def _advice(config: Config | TokenizerConfig) -> str:
    """Returns what to change so that the program needs less memory."""
    if _WHAT.value == "tokenizer":
        return "a smaller --config.train.batch_size or more chips"
    if _WHAT.value == "sample":
        return "a smaller --batch_size or more chips"
    if config.train.remat != "block":
        return "--config.train.remat=block"
    return "a larger --config.train.accumulation or --config.mesh.fsdp, or more chips"


def _print_table() -> None:
    """Prints a row of Markdown for each size of the model and topology."""
    rows = table.rows([_TOPOLOGY.value] if _TOPOLOGY.value else list(table.TOPOLOGIES), _JSON.value)
    for number, row in enumerate(rows):
        print(table.markdown(row) if number else f"{table.HEADER}\n{table.markdown(row)}", flush=True)
    print("\nby count, not run")


def main(argv):
    del argv
    check_json(_JSON.value)
    # Programs are compiled, not run: no accelerator of this machine is needed or occupied.
    jax.config.update("jax_platforms", "cpu")
    if _TABLE.value:
        _print_table()
        return
    config = _read_config()
    if _TOPOLOGY.value is None:
        raise UserError("name TPUs or GPUs, such as --topology=v5e:8x8 or --topology=h200:8")
    try:
        results = aot.analyse(config, _TOPOLOGY.value, _WHAT.value, _BATCH.value)
        show(results, _JSON.value)
        memory = results["memory per device, by the compiler"]
        needed, available = memory["total, GB"], memory["available, GB"]
        if needed > available:
            raise DoesNotFitError(needed, available)
    except DoesNotFitError as error:
        described = f"{config.name}, {_WHAT.value}, on {_TOPOLOGY.value}"
        cli.fail(f"{described}: does not fit: {error}; try {_advice(config)}", cli.FAILURE)
    print(f"fits: {needed:.1f} of {available:.1f} GB per device, by count, not run")
    if needed > memory.get("available to JAX by default, GB", available):
        share = math.ceil(100 * needed / available) / 100
        print(f"JAX uses {aot.GPU_SHARE:.0%} of a GPU's memory: set XLA_CLIENT_MEM_FRACTION to {share:.2f} or more")
