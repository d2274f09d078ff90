"""FLOPs of products and convolutions, against counts of the positions of a window."""

import jax
import jax.numpy as jnp
import pytest

from rar_jax.performance.hlo_text import parse
from rar_jax.performance.products import flops

PROGRAM = """
HloModule jit_step

ENTRY %main (a: {first}, b: {second}) -> {result} {{
  %a = {first} parameter(0)
  %b = {second} parameter(1)
  ROOT %out = {result} {call}
}}
"""


def flops_of(first, second, result, call):
    program = parse(PROGRAM.format(first=first, second=second, result=result, call=call))
    computation = program.computations["main"]
    return flops(computation["out"], computation, program)


def window_flops(size, taps, **window):
    """Returns the FLOPs of a square convolution of one image and one channel: a sum of ones counts the products."""
    counted = jax.lax.conv_general_dilated(
        jnp.ones((1, size, size, 1)), jnp.ones((taps, taps, 1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"), **window
    )
    return 2 * float(counted.sum())


def test_a_product_with_a_batch():
    call = "dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}"
    assert flops_of("bf16[3,4,5]", "bf16[3,5,6]", "f32[3,4,6]", call) == 3 * 2 * 4 * 5 * 6


@pytest.mark.parametrize(
    ("direction", "shapes"),
    [
        ("Forward", ("bf16[2,7,7,4]", "bf16[5,3,3,4]", "(bf16[2,4,4,5], u8[128])")),
        ("BackwardInput", ("bf16[2,4,4,5]", "bf16[5,3,3,4]", "(bf16[2,7,7,4], u8[128])")),
        ("BackwardFilter", ("bf16[2,7,7,4]", "bf16[2,4,4,5]", "(bf16[5,3,3,4], u8[128])")),
    ],
)
def test_a_library_convolution_and_its_gradients(direction, shapes):
    """All three calls of cuDNN describe the window of the convolution itself."""
    call = (
        f"custom-call(%a, %b), window={{size=3x3 stride=2x2 pad=1_1x1_1}}, dim_labels=b01f_o01i->b01f, "
        f'custom_call_target="__cudnn$conv{direction}"'
    )
    counted = window_flops(7, 3, window_strides=(2, 2), padding=((1, 1), (1, 1)))
    assert flops_of(*shapes, call) == 2 * 4 * 5 * counted


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("size=3x3 pad=2_1x2_1 lhs_dilate=2x2", {"padding": ((2, 1), (2, 1)), "lhs_dilation": (2, 2)}),
        ("size=3x3 rhs_dilate=2x2", {"padding": ((0, 0), (0, 0)), "rhs_dilation": (2, 2)}),
        ("size=3x3 pad=-1_2x-1_2", {"padding": ((-1, 2), (-1, 2))}),
    ],
)
def test_padding_and_holes_are_not_counted(text, window):
    strides = {"window_strides": (1, 1)}
    image, kernel = jnp.ones((1, 6, 6, 1)), jnp.ones((3, 3, 1, 1))
    side = jax.eval_shape(
        lambda: jax.lax.conv_general_dilated(
            image, kernel, **strides, **window, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    ).shape[1]
    call = f"convolution(%a, %b), window={{{text}}}, dim_labels=b01f_01io->b01f"
    found = flops_of("bf16[1,6,6,1]", "bf16[3,3,1,1]", f"bf16[1,{side},{side},1]", call)
    assert found == window_flops(6, 3, **strides, **window)


def test_a_tpu_writes_a_product_as_a_convolution():
    assert (
        flops_of("bf16[8,16]", "bf16[16,4]", "bf16[8,4]", "convolution(%a, %b), dim_labels=bf_io->bf") == 2 * 8 * 16 * 4
    )
