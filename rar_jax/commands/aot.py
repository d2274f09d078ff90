"""Compiles for a TPU slice that is not attached, and prints what the program needs.

    python -m rar_jax aot --config=configs/rar_xxl.py --topology=v5e:8x8

It prints the memory, work, collectives and roofline of the training step or the decode loop, and exits with code 1 if
the program does not fit a chip's memory. The package libtpu must be installed.
"""

import jax
from absl import flags
from ml_collections import config_flags

from rar_jax.commands import cli
from rar_jax.config import Config, without_data
from rar_jax.errors import UserError
from rar_jax.performance import aot
from rar_jax.performance.benchmarks.report import show

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the experiment. Its data is not read.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice, such as v5e:8x8, v4:4x4x4, v5p:2x2x4 or v6e:4x4.")
_WHAT = flags.DEFINE_enum(
    "what", "train", aot.PROGRAMS, "Program to compile: train is the training step, sample the decode loop."
)
_BATCH = flags.DEFINE_integer(
    "batch_size", 256, "Number of images decoded at once on all chips, with --what=sample.", lower_bound=1
)
_JSON = flags.DEFINE_string("json", None, "File to which the results are also written.")


def _advice(config: Config) -> str:
    """Returns what to change so that the program needs less memory."""
    if _WHAT.value == "sample":
        return f"--batch_size={max(_BATCH.value // 2, 1)} or more chips"
    if config.train.remat != "block":
        return "--config.train.remat=block"
    return f"--config.train.accumulation={2 * config.train.accumulation}, a larger --config.mesh.fsdp or more chips"


def main(argv):
    del argv
    # Programs are compiled, not run: no accelerator of this machine is needed or occupied.
    jax.config.update("jax_platforms", "cpu")
    config = without_data(_CONFIG.value)
    if _TOPOLOGY.value is None:
        raise UserError("name a slice, such as --topology=v5e:8x8")
    try:
        results = aot.analyse(config, _TOPOLOGY.value, _WHAT.value, _BATCH.value)
    except aot.DoesNotFitError as error:
        described = f"{config.name}, {_WHAT.value}, on {_TOPOLOGY.value}"
        cli.fail(f"{described}: does not fit: {error}; try {_advice(config)}", cli.FAILURE)
    show(results, _JSON.value)
    memory = results["memory per device, by the compiler"]
    print(f"fits: {memory['total, GB']:.1f} of {memory['available, GB']:.1f} GB per device")


if __name__ == "__main__":
    cli.run(main)
