"""Computes the bytes of main memory that one kernel of a compiled program reads and writes.

A kernel is a fusion or a single instruction. It reads each of its operands once and writes its results once. If it only
slices an operand, only the slices count as read. If it updates a buffer in place, only the update counts as written.
Caches, tile padding and repeated reads are not modelled.
"""

from rar_jax.performance.hlo_text import Array, Computation, Instruction

# An element of the results of these instructions needs more than the element at its place, so that all of an operand is
# read even if a part of the result is needed. For any other instruction the needed parts of result and operand agree.
_READS_ALL = frozenset(
    [
        "all-gather",
        "all-gather-start",
        "all-reduce",
        "all-reduce-start",
        "all-to-all",
        "broadcast",
        "collective-permute",
        "collective-permute-start",
        "concatenate",
        "convolution",
        "custom-call",
        "dot",
        "fusion",
        "gather",
        "map",
        "pad",
        "reduce",
        "reduce-scatter",
        "reduce-window",
        "scatter",
        "select-and-scatter",
        "sort",
        "tuple",
    ]
)
_SLICES = ("slice", "dynamic-slice", "gather")
_VIEWS = ("bitcast", "convert", "reshape")

# Parts of an array that are needed: the slices that lead to a part -> its share of the array. () is the whole array.
_Parts = dict[tuple[str, ...], float]


def _source(body: Computation, instruction: Instruction) -> Instruction:
    """Returns the instruction whose result this one only views in another shape or dtype."""
    while instruction.opcode in _VIEWS and instruction.operands[0] in body:
        instruction = body[instruction.operands[0]]
    return instruction


def _outputs(body: Computation) -> list[Instruction]:
    """Returns the instructions whose results a kernel writes."""
    root = next(each for each in body.values() if each.is_root)
    return [body[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _updates(body: Computation, output: Instruction) -> list[Instruction]:
    """Returns the updates that make an output out of a kernel's operand in place; none if it is written whole."""
    updates = []
    each = _source(body, output)
    while each.opcode in ("dynamic-update-slice", "scatter"):
        updates.append(each)
        each = _source(body, body[each.operands[0]])
    return updates if each.opcode == "parameter" else []


def _written(body: Computation, output: Instruction, result: Array) -> float:
    """Returns the bytes that a kernel writes of one of its results."""
    updates = _updates(body, output)
    if not updates:
        return 0 if output.opcode == "parameter" else _traffic(result)
    total = 0
    for update in updates:
        # An update of a scatter is added to what is there, which is read.
        place, times = (1, 1) if update.opcode == "dynamic-update-slice" else (-1, 2)
        total += times * body[update.operands[place]].arrays[0].bytes
    return 0 if result.on_chip else total


def _slice_key(instruction: Instruction) -> str:
    """Returns a text that is the same for instructions that take the same slice of the same array."""
    if instruction.opcode == "slice":
        return instruction.attributes.partition("}")[0]
    return ",".join(instruction.operands[1:])


def _operand_parts(body: Computation, user: Instruction, index: int, parts: _Parts, in_place: bool) -> _Parts:
    """Returns the parts of an operand that are needed, if these parts of its user's result are needed."""
    if in_place and index == 0:
        return {}
    if user.opcode in _SLICES and index == 0:
        share = user.arrays[0].bytes / max(1, body[user.operands[0]].arrays[0].bytes)
        key = _slice_key(user)
        return {(*path, key): min(1, share) * part for path, part in parts.items()}
    if user.opcode in _READS_ALL or user.opcode == "dynamic-update-slice":
        return {(): 1.0}
    return parts


def _needed(body: Computation) -> dict[str, _Parts]:
    """Returns the parts of the result of each instruction that a kernel needs."""
    needed = {name: {} for name in body}
    in_place = set()
    for output in _outputs(body):
        needed[output.name][()] = 1.0
        in_place |= {update.name for update in _updates(body, output)}
    for user in reversed(body.values()):
        if not needed[user.name]:
            continue
        for index, operand in enumerate(user.operands):
            if operand in body:
                parts = _operand_parts(body, user, index, needed[user.name], user.name in in_place)
                for path, part in parts.items():
                    needed[operand][path] = max(part, needed[operand].get(path, 0))
    return needed


def _traffic(array: Array) -> float:
    """Returns the bytes of an array in main memory."""
    return 0 if array.on_chip else array.bytes


def alone(instruction: Instruction, operands: list[Instruction]) -> Computation:
    """Returns the computation of a kernel that is a single instruction."""
    body = {
        each.name: each._replace(opcode="parameter", literal=str(number), operands=(), is_root=False)
        for number, each in enumerate(operands)
    }
    return body | {instruction.name: instruction._replace(is_root=True)}


def traffic(body: Computation, operands: list[Instruction], results: tuple[Array, ...]) -> tuple[float, float]:
    """Returns the bytes that a kernel reads and writes.

    Args:
      body: what the kernel computes. Its parameters are the operands.
      operands: the instructions whose results it reads.
      results: the arrays that it returns.
    """
    needed, read = _needed(body), 0.0
    for parameter in body.values():
        if parameter.opcode == "parameter":
            share = min(1.0, sum(needed[parameter.name].values()))
            read += share * sum(_traffic(array) for array in operands[int(parameter.literal)].arrays)
    outputs = _outputs(body)
    if len(outputs) != len(results):
        # The results of a custom call or of a sort are those of one instruction.
        return read, sum(_traffic(array) for array in results)
    return read, sum(_written(body, output, result) for output, result in zip(outputs, results, strict=True))
