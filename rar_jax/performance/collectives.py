"""Finds the collectives of a compiled program in its text (optimised and scheduled HLO)."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_ITEMSIZE = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_SHAPE = re.compile(r"\b(" + "|".join(_ITEMSIZE) + r")\[([\d,]*)\]")
# Bytes that a device sends per byte of the result, by the ring algorithms, with N devices in a group.
_SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?)\s(" + "|".join(_SENT) + r")(-start)?\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)|(?:branch|called)_computations=\{([^}]*)\}")


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


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation by its name, and the name of the entry computation."""
    computations, lines, entry = {}, None, ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations[match.group(2)] = []
            entry = match.group(2) if match.group(1) else entry
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            lines.append(line)
    return computations, entry


def _trips(line: str, condition: list[str]) -> int:
    """Returns the number of iterations of a while loop that counts to a constant."""
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(match.group(1))
    bounds = [
        int(match.group(1)) for line in condition if (match := re.search(r"= s32\[\]\S* constant\((\d+)\)", line))
    ]
    return max(bounds, default=1)


def _runs(computations: dict[str, list[str]], name: str, count: int = 1) -> Iterator[tuple[str, int]]:
    """Yields the name of each computation that this one runs, itself included, and how many times it runs."""
    yield name, count
    for line in computations[name]:
        called = [n.strip(" %") for one, many in _CALLED.findall(line) for n in (one or many).split(",")]
        condition = re.search(r" while\(.*condition=%?([\w.-]+)", line)
        times = _trips(line, computations[condition.group(1)]) if condition else 1
        for other in called:
            yield from _runs(computations, other, count * times)


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


def _bytes(shapes: str) -> int:
    """Returns the bytes of all the arrays in the text of a shape or of a tuple of shapes."""
    return sum(
        _ITEMSIZE[kind] * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _SHAPE.findall(shapes)
    )


def _bytes_of_operands(shapes: str) -> int:
    """Returns the bytes of the operands of an asynchronous start.

    Its shapes are "((operands), (results), ...)" or "(operand, result, ...)".
    """
    inner = shapes.strip()[1:]
    if inner.startswith("("):
        return _bytes(inner[: inner.index(")")])
    return _bytes(_SHAPE.search(inner).group(0))


def collectives(text: str, num_devices: int) -> list[Collective]:
    """Returns the collectives of a program. One in a loop counts once per iteration.

    Args:
      text: text of the program, from `jax.stages.Compiled.as_text()`.
      num_devices: number of devices that it is compiled for.
    """
    computations, entry = _computations(text)
    found = {}
    for name, count in _runs(computations, entry):
        for line in computations[name]:
            if not (match := _INSTRUCTION.match(line)):
                continue
            instruction, shapes, kind, start, rest = match.groups()
            devices = _group_size(rest, num_devices)
            result = _bytes(shapes)
            if "all-reduce-scatter" in name:
                # A TPU's reduce-scatter is a fusion of an all-reduce and a slice. Only the slice is its result.
                kind, result = "reduce-scatter", result / devices
            # A TPU can divide a collective into a chain of fusions that also compute. Together they are one.
            chain = re.search(r"channel_id=(\d+)", rest) if "chain_id=" in rest else None
            if start and kind != "all-reduce":
                # The result of an asynchronous start holds both the operands and the results.
                result -= _bytes_of_operands(shapes)
            # Peeling or unrolling a loop repeats a collective's channel, so the channel alone is not the key.
            key = (chain.group(1), count) if chain else (name, instruction)
            found[key] = Collective(kind, devices, count, result * _SENT[kind](devices), bool(start or chain))
    return [each for each in found.values() if each.devices > 1]
