"""Finds the collectives of a compiled program, and the bytes that they send."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from rar_jax.performance.hlo_text import Instruction, Program

# Bytes that a device sends per byte of the result, by the ring algorithms, with N devices in a group.
_SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


class Collective(NamedTuple):
    """A collective operation of a program.

    Attributes:
      kind: all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute.
      devices: number of devices in a group that communicates.
      count: number of times that it runs.
      sent: bytes that a device sends each time, by the ring algorithms.
      overlapped: whether the schedule places computation between its start and its end.
    """

    kind: str
    devices: int
    count: int
    sent: float
    overlapped: bool


def _runs(program: Program, name: str, count: int = 1) -> Iterator[tuple[str, int]]:
    """Yields the name of each computation that this one runs, itself included, and how many times it runs."""
    yield name, count
    for instruction in program.computations[name].values():
        times = program.trips(instruction) if instruction.opcode == "while" else 1
        for other in instruction.called:
            yield from _runs(program, other, count * times)


def _group_size(line: str, num_devices: int) -> int:
    """Returns the number of devices in a group of a collective."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match.group(2)))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match.group(1))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match.group(1).count(",") + 1
    return num_devices


def _collective(instruction: Instruction, count: int, num_devices: int, scatters: bool) -> Collective:
    """Returns the collective of an instruction.

    Args:
      instruction: the instruction.
      count: number of times that it runs.
      num_devices: number of devices that the program is compiled for.
      scatters: whether it belongs to a reduce-scatter.
    """
    kind = instruction.opcode.removesuffix("-start")
    devices = _group_size(instruction.attributes, num_devices)
    result = sum(array.bytes for array in instruction.results)
    if scatters:
        kind, result = "reduce-scatter", result / devices
    overlapped = instruction.opcode.endswith("-start") or "chain_id=" in instruction.attributes
    return Collective(kind, devices, count, result * _SENT[kind](devices), overlapped)


def collectives(program: Program, num_devices: int) -> list[Collective]:
    """Returns the collectives of a program. One in a loop counts once per iteration.

    Args:
      program: the program.
      num_devices: number of devices that it is compiled for.
    """
    found = {}
    for name, count in _runs(program, program.entry):
        for instruction in program.computations[name].values():
            if instruction.opcode.removesuffix("-start") not in _SENT:
                continue
            # A TPU can divide a collective into a chain of fusions that also compute. Together they are one.
            chained = "chain_id=" in instruction.attributes
            chain = re.search(r"channel_id=(\d+)", instruction.attributes) if chained else None
            # Peeling or unrolling a loop repeats a collective's channel, so the channel alone is not the key.
            key = (chain.group(1), count) if chain else (name, instruction.name)
            # A TPU's reduce-scatter is a fusion of an all-reduce and a slice. Only the slice is its result.
            found[key] = _collective(instruction, count, num_devices, "all-reduce-scatter" in name)
    return [each for each in found.values() if each.devices > 1]
