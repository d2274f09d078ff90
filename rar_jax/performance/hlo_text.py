"""Reads the text of a compiled program (optimised and scheduled HLO, https://openxla.org/xla/hlo_dumps)."""

import math
import re
from typing import NamedTuple

_ITEMSIZE = {
    "token": 0,
    "s4": 0.5,
    "u4": 0.5,
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_ARRAY = re.compile(r"\b(" + "|".join(_ITEMSIZE) + r")\[([\d,<=]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.-]+)|\w+_computations=\{([^}]*)\}")
_FRAME_ID = re.compile(r"stack_frame_id=(\d+)")


class Array(NamedTuple):
    """An array of a program.

    Attributes:
      dtype: such as bf16.
      shape: its sizes.
      on_chip: whether it is kept in a TPU's vector memory (memory space 1) instead of its main memory.
    """

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> float:
        return _ITEMSIZE[self.dtype] * math.prod(self.shape)


class Instruction(NamedTuple):
    """An instruction of a computation.

    Attributes:
      name: unique in the program.
      opcode: such as fusion.
      arrays: its result: one array, or those of a tuple.
      operands: names of the instructions that it reads.
      literal: the text between its parentheses: the number of a parameter, or a constant's value.
      attributes: the text behind its parentheses.
      is_root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    @property
    def op_name(self) -> str:
        """Returns the path of the JAX operation that it comes from, or "" if it is not known."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match.group(1) if match else ""

    @property
    def target(self) -> str:
        """Returns the name of the function that a custom call runs."""
        match = re.search(r'custom_call_target="([^"]+)"', self.attributes)
        return match.group(1) if match else ""

    @property
    def results(self) -> tuple[Array, ...]:
        """Returns the arrays that it makes, without scratch memory and what only keeps track of a transfer."""
        if self.opcode == "custom-call":
            # Bytes are the scratch memory of a library call.
            return tuple(array for array in self.arrays if array.dtype not in ("s8", "u8"))
        if self.opcode == "copy-start":
            return self.arrays[:1]
        if self.opcode in ("all-gather-start", "all-to-all-start", "collective-permute-start", "reduce-scatter-start"):
            # The result of an asynchronous start holds both the operands and the results.
            return self.arrays[len(self.operands) : 2 * len(self.operands)]
        return self.arrays

    @property
    def called(self) -> list[str]:
        """Returns the names of the computations that it runs."""
        return [name.strip(" %") for one, many in _CALLED.findall(self.attributes) for name in (one or many).split(",")]


Computation = dict[str, Instruction]


class Frame(NamedTuple):
    """A line of Python code."""

    file: str
    line: int


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      computations: name -> name of an instruction -> instruction. Operands precede the instructions that read them.
      entry: name of the computation that is run.
      stacks: stack_frame_id -> the frames of a traceback, the innermost first.
    """

    computations: dict[str, Computation]
    entry: str
    stacks: dict[int, list[Frame]]

    def stack(self, instruction: Instruction) -> list[Frame]:
        """Returns the Python frames that an instruction comes from, the innermost first."""
        match = _FRAME_ID.search(instruction.attributes)
        return self.stacks.get(int(match.group(1)), []) if match else []

    def trips(self, loop: Instruction) -> int:
        """Returns the number of iterations of a while loop that counts to a constant, and 1 for any other loop."""
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(match.group(1))
        condition = re.search(r"condition=%?([\w.-]+)", loop.attributes).group(1)
        bounds = [
            int(each.literal)
            for each in self.computations[condition].values()
            if each.opcode == "constant" and each.literal.isdigit()
        ]
        return max(bounds, default=1)


def arrays(text: str) -> tuple[Array, ...]:
    """Returns the arrays in the text of a shape, or of a tuple of shapes."""
    return tuple(
        Array(dtype, tuple(int(size.strip("<=")) for size in sizes.split(",") if size), "S(1)" in layout)
        for dtype, sizes, layout in _ARRAY.findall(text)
    )


def _closing(text: str, start: int) -> int:
    """Returns the place of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"no parenthesis closes the one at {start} of: {text}")


def _instruction(line: str) -> Instruction | None:
    """Parses "%name = shape opcode(operands), attributes"."""
    if not (match := _INSTRUCTION.match(line)):
        return None
    root, name, text = match.groups()
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    start = text.index("(", end)
    close = _closing(text, start)
    opcode, literal = text[end:start].strip(), text[start + 1 : close]
    operands = () if opcode in ("constant", "parameter") else tuple(re.findall(r"%([\w.-]+)", literal))
    shapes = arrays(text[:end])
    if opcode == "slice-start":
        # The shape of an asynchronous slice also holds its operand, and a number that keeps track of it.
        opcode, shapes = "slice", shapes[1:2]
    return Instruction(name, opcode, shapes, operands, literal, text[close + 1 :], bool(root))


def _table(lines: list[str], title: str) -> dict[int, str]:
    """Returns a table of a program's header: number of an entry -> its text."""
    if title not in lines:
        return {}
    rows = {}
    for line in lines[lines.index(title) + 1 :]:
        number, _, row = line.partition(" ")
        if not number.isdigit():
            break
        rows[int(number)] = row
    return rows


def _stacks(lines: list[str]) -> dict[int, list[Frame]]:
    """Returns the tracebacks of a program's header, the innermost frame first."""
    files = {number: row.strip('"') for number, row in _table(lines, "FileNames").items()}
    fields = {
        title: {number: {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", row)} for number, row in rows.items()}
        for title in ("FileLocations", "StackFrames")
        if (rows := _table(lines, title))
    }
    places = {
        number: Frame(files[place["file_name_id"]], place["line"])
        for number, place in fields.get("FileLocations", {}).items()
    }
    frames = fields.get("StackFrames", {})
    # Some versions of XLA print the number of a parent plus one. The smallest number means that there is no parent.
    none = min((frame.get("parent_frame_id", 0) for frame in frames.values()), default=0)
    stacks = {0: []}
    for number, frame in sorted(frames.items()):
        parent = frame.get("parent_frame_id", 0) - none
        stacks[number] = [places[frame["file_location_id"]], *stacks[parent]]
    return stacks


def parse(text: str) -> Program:
    """Parses the text of a program, from `jax.stages.Compiled.as_text()`."""
    # The attributes of a Pallas call on a TPU have line breaks.
    lines = re.sub(r'\n(?="|}})', "", text).splitlines()
    computations, current, entry = {}, None, ""
    for line in lines:
        if match := _COMPUTATION.match(line):
            current = computations[match.group(2)] = {}
            entry = match.group(2) if match.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    return Program(computations, entry, _stacks(lines))
