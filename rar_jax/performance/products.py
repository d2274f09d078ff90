"""Counts the FLOPs of the matrix products and convolutions of a compiled program. A multiply-add counts as two."""

import math
import re

from rar_jax.performance.hlo_text import Computation, Instruction, Program

_PRODUCT_TARGETS = re.compile(r"gemm|matmul", re.IGNORECASE)
_CONVOLUTION_TARGET = "__cudnn$conv"


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"-?\d+", text)]


def _dot_flops(dot: Instruction, lhs: Instruction) -> float:
    """Returns 2 M N K of a product, of all of a batch."""
    match = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([^\]}]*)', dot.attributes)
    contracted = math.prod(lhs.arrays[0].shape[axis] for axis in _numbers(match.group(1)))
    return 2 * math.prod(dot.arrays[0].shape) * contracted


def _pairs(size: int, outputs: int, window: dict[str, list[int]], axis: int) -> int:
    """Returns how often a window reads an element, not padding or a hole, along one spatial axis.

    Args:
      size: of the input along the axis.
      outputs: size of the output.
      window: its fields, such as stride, each with one entry per axis; those of pad are two.
      axis: number of the axis.
    """
    field = {name: window[name][axis] if name in window else 1 for name in ("stride", "lhs_dilate", "rhs_dilate")}
    before = window["pad"][2 * axis] if "pad" in window else 0
    count = 0
    for tap in range(window["size"][axis]):
        first = tap * field["rhs_dilate"] - before
        places = range(first, first + outputs * field["stride"], field["stride"])
        holes = field["lhs_dilate"]
        count += sum(place % holes == 0 and 0 <= place // holes < size for place in places)
    return count


def _convolution_flops(instruction: Instruction, computation: Computation) -> float:
    """Returns the FLOPs of a convolution, without its products with padding or holes."""
    text = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = re.findall(r"(\w+)=([-\dx_]+)", text.group(1)) if text else []
    window = {"size": []} | {name: _numbers(values.replace("_", " ").replace("x", " ")) for name, values in fields}
    lhs, rhs, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
    image, kernel = (computation[name].arrays[0].shape for name in instruction.operands[:2])
    output = instruction.arrays[0].shape
    if instruction.target.endswith("BackwardInput"):
        image, output = output, image
    elif instruction.target.endswith("BackwardFilter"):
        kernel, output = output, kernel
    flops = 2 * output[out.index("b")] * output[out.index("f")] * kernel[rhs.index("i")]
    for axis in range(len(window["size"])):
        flops *= _pairs(image[lhs.index(str(axis))], output[out.index(str(axis))], window, axis)
    return flops


def flops(instruction: Instruction, computation: Computation, program: Program) -> float:
    """Returns the FLOPs of the products and convolutions of an instruction, or of a fusion's instructions."""
    if instruction.opcode == "fusion":
        return sum(
            flops(each, program.computations[name], program)
            for name in instruction.called
            for each in program.computations[name].values()
        )
    if instruction.opcode == "dot" or _PRODUCT_TARGETS.search(instruction.target):
        return _dot_flops(instruction, computation[instruction.operands[0]])
    if instruction.opcode == "convolution" or instruction.target.startswith(_CONVOLUTION_TARGET):
        return _convolution_flops(instruction, computation)
    return 0.0
