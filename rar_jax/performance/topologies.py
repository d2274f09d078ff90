"""Opens slices of TPUs and nodes of GPUs that are not attached, so that programs can be compiled for them.

The package libtpu contains the TPU compiler, and jax-cuda12-pjrt with jax-cuda12-plugin the GPU compiler. Both run on
any x86 Linux machine. The data sheets of GPUs that the compiler reads are in `gpu_targets/` (XLA's
GpuTargetConfigProto).
"""

import importlib.util
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from rar_jax.errors import UserError
from rar_jax.performance.chips import CHIPS, Chip

GPUS = tuple(kind for kind, chip in CHIPS.items() if chip.is_gpu)
TPUS = tuple(kind for kind in CHIPS if kind not in GPUS)

_TARGETS = pathlib.Path(__file__).parent / "gpu_targets"
_MISSING = "topology={!r} needs {}: install it with launch/install.sh {}, which also works without {}"


class Topology(NamedTuple):
    """Devices that programs can be compiled for.

    Attributes:
      devices: all of them.
      chip: the data sheet of a device.
      options: options for the compiler, such as `jax.stages.Lowered.compile` takes.
    """

    devices: list[jax.Device]
    chip: Chip
    options: dict[str, Any]


def _prepare_libtpu() -> None:
    """Sets the environment variables that libtpu reads when it is loaded, unless they are already set."""
    # Without the first, libtpu asks the metadata server of a cloud machine which TPU it has. The second lets several
    # processes compile at the same time. The last two only avoid log messages about an unknown machine: the topology
    # is requested by name.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")


def _open_tpus(name: str, kind: str) -> Topology:
    """Returns a TPU slice, such as v5e:8x8."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(_MISSING.format(name, "the TPU compiler, the package libtpu", "tpu", "a TPU"))
    _prepare_libtpu()
    try:
        devices = topologies.get_topology_desc(
            # JAX sees the two cores of a v4 chip as one device.
            platform="tpu",
            topology_name=name,
            **({"chip_config_name": "megacore"} if kind == "v4" else {}),
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"topology={name!r}: {str(error).splitlines()[0]}") from None
    return Topology(list(devices), CHIPS[kind], {})


def _open_gpus(name: str, kind: str, sizes: str) -> Topology:
    """Returns GPUs: "8" is a node of eight, "2x8" two such nodes."""
    if not re.fullmatch(r"([1-9]\d*x)?[1-9]\d*", sizes):
        raise UserError(f"topology={name!r} must end with the number of GPUs or with nodes x GPUs, such as h200:2x8")
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        packages = "the GPU compiler, the package jax-cuda12-plugin (about 180 MB, no NVIDIA libraries)"
        raise UserError(_MISSING.format(name, packages, "aot", "a GPU"))
    # A topology of XLA is partitions x hosts x devices.
    topology = f"1x{sizes}" if "x" in sizes else f"1x1x{sizes}"
    target = (_TARGETS / f"{kind.lower()}.txtpb").read_text()
    devices = topologies.get_topology_desc(platform="cuda", target_config=target, topology=topology).devices
    # Without a GPU, tilings of Triton's products cannot be tried, and a default one can fail to compile. With this
    # option products are cuBLAS calls.
    return Topology(list(devices), CHIPS[kind], {"xla_gpu_enable_triton_gemm": False})


def open_topology(name: str) -> Topology:
    """Returns the devices of a TPU slice or of nodes of GPUs.

    Args:
      name: a TPU slice, such as v5e:8x8 or v5p:2x2x4, or GPUs, such as h200:1, or h200:2x8 for two nodes of eight.

    Raises:
      UserError: the topology does not exist, or the compiler is not installed.
    """
    kind, _, sizes = name.partition(":")
    if kind in TPUS:
        return _open_tpus(name, kind)
    if kind.upper() in GPUS:
        return _open_gpus(name, kind.upper(), sizes)
    kinds = [*TPUS, *(gpu.lower() for gpu in GPUS)]
    raise UserError(f"topology={name!r} must begin with one of {', '.join(kinds)}, such as v5e:8x8 or h200:8")
