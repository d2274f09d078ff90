"""Sums up the kernels of a compiled program: bytes, FLOPs and least times, by kind, part of the model and line of code.

A kernel takes at least the time of its bytes at the chip's memory bandwidth, and of its FLOPs at the chip's rate of
matrix products. The time of a program is the sum over its kernels. It is a count and not a measurement: caches,
occupancy and the choice of algorithms, which only a run can show, are left out.
"""

import re
from collections.abc import Callable, Hashable
from typing import Any

from rar_jax.performance.chips import Chip
from rar_jax.performance.kernels import Kernel

# Time between the starts of two short kernels of a GPU, s. A TPU runs a program without launches.
LAUNCH = 2e-6

# The first pattern that is found in the path of a kernel's JAX operation names the part of the model.
_PARTS = {
    "norms": r"norm",
    "modulation": r"modulat",
    "MLP": r"/mlp",
    "attention": r"attention",
    "values kept by the loop over blocks": r"_apply_blocks/(broadcast|while$|while/body/[^/]*(/dynamic[^/]*)?$)",
    "shift, scale, gate and residual": r"/blocks|/Block",
    "embeddings": r"embed",
    "head": r"head",
    # Of a tokenizer.
    "discriminator": r"[Dd]iscriminator",
    "encoder": r"encoder",
    "decoder": r"decoder",
}
_OPTIMIZER = re.compile(r"optax|training/(optimizer|state)\.py")
_SHOWN = 10


def seconds(kernel: Kernel, chip: Chip) -> float:
    """Returns the least time of all runs of a kernel, in s."""
    return kernel.count * max(kernel.bytes / chip.bandwidth, kernel.flops / chip.flop_rate)


def part(kernel: Kernel) -> str:
    """Returns the part of the model that a kernel belongs to; "other" if its names do not tell."""
    if any(_OPTIMIZER.search(file) for file in kernel.files):
        return "optimizer"
    return next((name for name, pattern in _PARTS.items() if re.search(pattern, kernel.op_name)), "other")


def _sums(kernels: list[Kernel], chip: Chip, total: float) -> dict[str, Any]:
    """Returns the sums over a group of kernels, with its share of the `total` time in s."""
    time = sum(seconds(kernel, chip) for kernel in kernels)
    return {
        "ms": 1e3 * time,
        "%": 100 * time / total,
        "GB": sum(kernel.count * kernel.bytes for kernel in kernels) / 1e9,
        "TFLOP": sum(kernel.count * kernel.flops for kernel in kernels) / 1e12,
        "runs": sum(kernel.count for kernel in kernels),
    }


def _groups(kernels: list[Kernel], chip: Chip, total: float, name: Callable[[Kernel], Hashable]) -> dict[Hashable, Any]:
    """Returns the sums over each group of kernels, the most costly first."""
    groups = {}
    for kernel in kernels:
        groups.setdefault(name(kernel), []).append(kernel)
    sums = {group: _sums(members, chip, total) for group, members in groups.items()}
    return dict(sorted(sums.items(), key=lambda each: -each[1]["ms"]))


def _likeness(kernel: Kernel) -> tuple:
    """Returns what is the same for the kernels of one line in unrolled layers, which have names of their own."""
    return kernel.op_name, kernel.line, kernel.bytes, kernel.flops


def summary(kernels: list[Kernel], chip: Chip) -> dict[str, dict[str, Any]]:
    """Returns the sections of a report: the sums over all kernels, by kind, by part, and the most costly kernels."""
    time = sum(seconds(kernel, chip) for kernel in kernels)
    runs = sum(kernel.count for kernel in kernels)
    launches = runs * LAUNCH if chip.is_gpu else 0.0
    alike = _groups(kernels, chip, time, _likeness)
    names = {_likeness(kernel): kernel.name for kernel in kernels}
    return {
        "kernels per device": {
            "kernels": runs,
            "kernels in loops": sum(kernel.count for kernel in kernels if kernel.count > 1),
            "bytes moved, GB": sum(kernel.count * kernel.bytes for kernel in kernels) / 1e9,
            "products, TFLOP": sum(kernel.count * kernel.flops for kernel in kernels) / 1e12,
            "roofline, ms": 1e3 * time,
            "launches, ms": 1e3 * launches,
            "roofline with launches, ms": 1e3 * (time + launches),
        },
        "kernels by kind": _groups(kernels, chip, time, lambda kernel: kernel.kind),
        "kernels by part of the model": _groups(kernels, chip, time, part),
        "most costly kernels": {
            names[key]: sums | {"line": key[1] or "unknown"} for key, sums in list(alike.items())[:_SHOWN]
        },
    }
