"""Lists the kernels of a compiled program, with the bytes that they move and the FLOPs of their products.

Nothing is run. A kernel in a loop is counted once per iteration. If a condition has several branches, the one that
moves the most bytes counts.
"""

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import NamedTuple

from rar_jax.performance.hlo_text import Computation, Instruction, Program
from rar_jax.performance.products import flops
from rar_jax.performance.traffic import alone, traffic

# These instructions only name, group or reshape values, or wait for what was started before.
_NO_KERNELS = frozenset(
    [
        "add-dependency",
        "after-all",
        "bitcast",
        "constant",
        "get-tuple-element",
        "opt-barrier",
        "parameter",
        "partition-id",
        "replica-id",
        "tuple",
    ]
)
_MOVES = frozenset(
    [
        "bitcast",
        "broadcast",
        "concatenate",
        "constant",
        "convert",
        "copy",
        "copy-start",
        "dynamic-slice",
        "dynamic-update-slice",
        "iota",
        "pad",
        "parameter",
        "reshape",
        "slice",
        "transpose",
        "tuple",
    ]
)
_COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_GATHERS = frozenset(["gather", "scatter", "sort", "rng-bit-generator"])


class Kernel(NamedTuple):
    """A kernel of a program.

    Attributes:
      name: of its instruction.
      kind: products (of matrices, and convolutions), reductions, copies, gathers, collectives, custom calls or
        elementwise.
      count: number of times that it runs.
      read, written: bytes of main memory each time.
      flops: of its products and convolutions each time.
      op_name: path of the JAX operation that it comes from.
      files: the Python files of the traceback, the innermost first.
      line: the innermost line of rar_jax, such as models/rar.py:213, or "".
    """

    name: str
    kind: str
    count: int
    read: float
    written: float
    flops: float
    op_name: str
    files: tuple[str, ...]
    line: str

    @property
    def bytes(self) -> float:
        return self.read + self.written


def _opcodes(instruction: Instruction, program: Program) -> set[str]:
    """Returns the opcodes of an instruction, or those of a fusion's instructions."""
    if instruction.opcode != "fusion":
        return {instruction.opcode}
    bodies = [program.computations[name] for name in instruction.called]
    return set().union(*(_opcodes(each, program) for body in bodies for each in body.values()))


def _kind(instruction: Instruction, program: Program, work: float) -> str:
    """Returns the kind of a kernel; see `Kernel`."""
    opcodes = _opcodes(instruction, program)
    if work:
        return "products"
    if any(opcode.startswith(_COLLECTIVES) for opcode in opcodes):
        return "collectives"
    if "custom-call" in opcodes:
        return "custom calls"
    if any(opcode.startswith("reduce") for opcode in opcodes):
        return "reductions"
    if opcodes & _GATHERS:
        return "gathers"
    return "copies" if opcodes <= _MOVES else "elementwise"


def _kernel(instruction: Instruction, computation: Computation, program: Program) -> Kernel:
    """Returns the kernel of an instruction, which runs once."""
    operands = [computation[name] for name in instruction.operands if name in computation]
    if instruction.opcode == "fusion":
        body = program.computations[instruction.called[0]]
    else:
        body = alone(instruction, operands)
    read, written = traffic(body, operands, instruction.results)
    work = flops(instruction, computation, program)
    frames = program.stack(instruction)
    own = next((frame for frame in frames if "rar_jax" in PurePath(frame.file).parts), None)
    line = "" if own is None else f"{own.file.rpartition('rar_jax/')[2]}:{own.line}"
    files = tuple(frame.file for frame in frames)
    kind = _kind(instruction, program, work)
    return Kernel(instruction.name, kind, 1, read, written, work, instruction.op_name, files, line)


def _run(program: Program, name: str, count: int) -> Iterator[Kernel]:
    """Yields the kernels of a computation that runs `count` times."""
    computation = program.computations[name]
    for instruction in computation.values():
        called = instruction.called
        if instruction.opcode == "while":
            # The condition of a loop that counts is not evaluated on the device.
            body = re.search(r"body=%?([\w.-]+)", instruction.attributes).group(1)
            yield from _run(program, body, count * program.trips(instruction))
        elif instruction.opcode in ("call", "async-start"):
            for each in called:
                yield from _run(program, each, count)
        elif instruction.opcode == "conditional":
            branches = [list(_run(program, each, count)) for each in called]
            yield from max(branches, key=lambda branch: sum(kernel.bytes for kernel in branch))
        elif instruction.opcode not in _NO_KERNELS and not instruction.opcode.endswith(("-done", "-update")):
            yield _kernel(instruction, computation, program)._replace(count=count)


def kernels(program: Program) -> list[Kernel]:
    """Returns the kernels that a program runs."""
    return list(_run(program, program.entry, 1))
