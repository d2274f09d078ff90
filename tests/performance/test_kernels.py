"""The kernels of small programs, of which every byte and FLOP is counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from rar_jax.performance.hlo_text import parse
from rar_jax.performance.kernels import kernels

# A loop of 24 iterations that takes a row of a buffer, multiplies it, and writes it into another buffer in place.
LOOP = """
HloModule jit_step, is_scheduled=true

FileNames
1 "/home/user/rar_jax/models/rar.py"
2 "/usr/lib/python3/flax/linen/linear.py"

FunctionNames
1 "Block.__call__"
2 "Dense.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=213 end_line=213 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=40 end_line=40 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}


%fused_slice (p0: f32[24,8,16], p1: s32[]) -> bf16[8,16] {
  %p0 = f32[24,8,16]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,8,16]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  %view = f32[8,16]{1,0} bitcast(%row)
  ROOT %small = bf16[8,16]{1,0} convert(%view)
}

%fused_update (p0.1: bf16[24,8,4], p1.1: bf16[8,4], p2: s32[]) -> bf16[24,8,4] {
  %p0.1 = bf16[24,8,4]{2,1,0} parameter(0)
  %p1.1 = bf16[8,4]{1,0} parameter(1)
  %new = bf16[1,8,4]{2,1,0} bitcast(%p1.1)
  %p2 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %update = bf16[24,8,4]{2,1,0} dynamic-update-slice(%p0.1, %new, %p2, %zero.1, %zero.1)
}

%body (t: (s32[], f32[24,8,16], bf16[16,4], bf16[24,8,4])) -> (s32[], f32[24,8,16], bf16[16,4], bf16[24,8,4]) {
  %t = (s32[], f32[24,8,16]{2,1,0}, bf16[16,4]{1,0}, bf16[24,8,4]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %rows = f32[24,8,16]{2,1,0} get-tuple-element(%t), index=1
  %weight = bf16[16,4]{1,0} get-tuple-element(%t), index=2
  %kept = bf16[24,8,4]{2,1,0} get-tuple-element(%t), index=3
  %load = bf16[8,16]{1,0} fusion(%rows, %i), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(step)/while/body/slice"}
  %product = (bf16[8,4]{1,0}, s8[4096]{0}) custom-call(%load, %weight), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/blocks/mlp/dot_general" stack_frame_id=2}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  %result = bf16[8,4]{1,0} get-tuple-element(%product), index=0
  %store = bf16[24,8,4]{2,1,0} fusion(%kept, %result, %i), kind=kLoop, calls=%fused_update
  ROOT %out = (s32[], f32[24,8,16]{2,1,0}, bf16[16,4]{1,0}, bf16[24,8,4]{2,1,0}) tuple(%i, %rows, %weight, %store)
}

%condition (t.1: (s32[], f32[24,8,16], bf16[16,4], bf16[24,8,4])) -> pred[] {
  %t.1 = (s32[], f32[24,8,16]{2,1,0}, bf16[16,4]{1,0}, bf16[24,8,4]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %bound = s32[] constant(24)
  ROOT %less = pred[] compare(%i.1, %bound), direction=LT
}

ENTRY %main (a: f32[24,8,16], w: bf16[16,4]) -> bf16[24,8,4] {
  %a = f32[24,8,16]{2,1,0} parameter(0)
  %w = bf16[16,4]{1,0} parameter(1)
  %start = s32[] constant(0)
  %one = bf16[] constant(1)
  %buffer = bf16[24,8,4]{2,1,0} broadcast(%one), dimensions={}
  %all = (s32[], f32[24,8,16]{2,1,0}, bf16[16,4]{1,0}, bf16[24,8,4]{2,1,0}) tuple(%start, %a, %w, %buffer)
  %loop = (s32[], f32[24,8,16]{2,1,0}, bf16[16,4]{1,0}, bf16[24,8,4]{2,1,0}) while(%all), condition=%condition, body=%body
  ROOT %done = bf16[24,8,4]{2,1,0} get-tuple-element(%loop), index=3
}
"""  # noqa: E501


def counted(text):
    """Returns name -> (kind, count, bytes read, bytes written, FLOPs)."""
    return {k.name: (k.kind, k.count, k.read, k.written, k.flops) for k in kernels(parse(text))}


def test_a_loop_with_a_slice_a_product_and_an_update_in_place():
    assert counted(LOOP) == {
        "buffer": ("copies", 1, 2, 24 * 8 * 4 * 2, 0),
        "load": ("copies", 24, 8 * 16 * 4 + 4, 8 * 16 * 2, 0),
        "product": ("products", 24, (8 * 16 + 16 * 4) * 2, 8 * 4 * 2, 2 * 8 * 16 * 4),
        "store": ("copies", 24, 8 * 4 * 2 + 4, 8 * 4 * 2, 0),
    }


def test_a_kernel_has_the_innermost_line_of_the_project():
    (product,) = (kernel for kernel in kernels(parse(LOOP)) if kernel.name == "product")
    assert product.line == "models/rar.py:213" and product.op_name == "jit(step)/blocks/mlp/dot_general"
    assert [file.rpartition("/")[2] for file in product.files] == ["linear.py", "rar.py"]


KERNEL = """
HloModule jit_step

%sum (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}}

%fused (p: f32[6,8], q: f32[3,8]) -> f32[3,8] {{
  %p = f32[6,8]{{1,0}} parameter(0)
  %q = f32[3,8]{{1,0}} parameter(1)
  %zero = f32[] constant(0)
  %place = s32[] constant(3)
{body}
}}

ENTRY %main (a: f32[6,8]{space}, b: f32[3,8]) -> f32[3,8] {{
  %a = f32[6,8]{{1,0{space}}} parameter(0)
  %b = f32[3,8]{{1,0}} parameter(1)
  ROOT %kernel = {result} fusion(%a, %b), kind=kLoop, calls=%fused
}}
"""


@pytest.mark.parametrize(
    ("body", "result", "read", "written"),
    [
        # Half of p is needed, whatever is computed before the slice and however often the slice is used.
        (
            """  %n = f32[6,8]{1,0} negate(%p)
  %s1 = f32[3,8]{1,0} slice(%n), slice={[0:3], [0:8]}
  %s2 = f32[3,8]{1,0} slice(%n), slice={[0:3], [0:8]}
  %s = f32[3,8]{1,0} multiply(%s1, %s2)
  ROOT %r = f32[3,8]{1,0} add(%s, %q)""",
            "f32[3,8]{1,0}",
            3 * 8 + 3 * 8,
            3 * 8,
        ),
        # Two different slices are all of p.
        (
            """  %s1 = f32[3,8]{1,0} slice(%p), slice={[0:3], [0:8]}
  %s2 = f32[3,8]{1,0} slice(%p), slice={[3:6], [0:8]}
  ROOT %r = f32[3,8]{1,0} add(%s1, %s2)""",
            "f32[3,8]{1,0}",
            6 * 8,
            3 * 8,
        ),
        # A slice of sums over rows of p reads all of the rows that are summed.
        (
            """  %r1 = f32[6]{0} reduce(%p, %zero), dimensions={1}, to_apply=%sum
  ROOT %r = f32[3]{0} slice(%r1), slice={[0:3]}""",
            "f32[3]{0}",
            6 * 8,
            3,
        ),
        # A buffer that the kernel makes is written whole, and one that it is given only where it is updated.
        (
            """  %new = f32[6,8]{1,0} broadcast(%zero), dimensions={}
  ROOT %r = f32[6,8]{1,0} dynamic-update-slice(%new, %q, %place, %place)""",
            "f32[6,8]{1,0}",
            3 * 8,
            6 * 8,
        ),
        (
            """  %u = f32[6,8]{1,0} dynamic-update-slice(%p, %q, %place, %place)
  %n = f32[3,8]{1,0} negate(%q)
  ROOT %r = (f32[6,8]{1,0}, f32[3,8]{1,0}) tuple(%u, %n)""",
            "(f32[6,8]{1,0}, f32[3,8]{1,0})",
            3 * 8,
            3 * 8 + 3 * 8,
        ),
        # An updated buffer of which the kernel computes something else is read.
        (
            """  %u = f32[6,8]{1,0} dynamic-update-slice(%p, %q, %place, %place)
  ROOT %r = f32[6,8]{1,0} negate(%u)""",
            "f32[6,8]{1,0}",
            6 * 8 + 3 * 8,
            6 * 8,
        ),
    ],
)
def test_the_bytes_of_a_fusion(body, result, read, written):
    (kernel,) = kernels(parse(KERNEL.format(body=body, result=result, space="")))
    assert (kernel.read, kernel.written) == (4 * read, 4 * written)


def test_arrays_in_the_vector_memory_of_a_tpu_are_not_counted():
    body = "  %n = f32[6,8]{1,0} negate(%p)\n  ROOT %r = f32[3,8]{1,0} slice(%n), slice={[0:3], [0:8]}"
    (kernel,) = kernels(parse(KERNEL.format(body=body, result="f32[3,8]{1,0}", space=":T(8,128)S(1)")))
    assert (kernel.read, kernel.written) == (0, 4 * 3 * 8)


TPU = """
HloModule jit_step

ENTRY %main (a: bf16[6,8]) -> bf16[6,8] {
  %a = bf16[6,8]{1,0} parameter(0)
  %start = ((bf16[6,8]{1,0}), bf16[2,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:8]}
  %done = bf16[2,8]{1,0:T(8,128)S(1)} slice-done(%start)
  %call = bf16[6,8]{1,0} custom-call(%done), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="jit(step)/attention/pallas_call"}
  ROOT %sum = bf16[6,8]{1,0} add(%call, %a)
}
"""  # noqa: E501


def test_an_asynchronous_slice_and_a_pallas_call_of_a_tpu():
    """Of the sliced array two rows are read, into vector memory. The attributes of the call are on several lines."""
    assert counted(TPU) == {
        "start": ("copies", 1, 2 * 8 * 2, 0, 0),
        "call": ("custom calls", 1, 0, 6 * 8 * 2, 0),
        "sum": ("elementwise", 1, 2 * 6 * 8 * 2, 6 * 8 * 2, 0),
    }
    assert [kernel.op_name for kernel in kernels(parse(TPU))][1] == "jit(step)/attention/pallas_call"


@pytest.mark.parametrize("trips", [1, 5])
def test_a_program_compiled_for_the_cpu(trips):
    """Each iteration of a scan multiplies by one weight of a stack; tanh is another kernel or a part of one."""

    def step(x, weights):
        return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), x.sum()), x, weights)

    shapes = jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((trips, 64, 64), jnp.float32)
    found = kernels(parse(jax.jit(step).lower(*shapes).compile().as_text()))
    assert sum(kernel.count * kernel.flops for kernel in found) == trips * 2 * 32 * 64 * 64
    moved = sum(kernel.count * kernel.bytes for kernel in found)
    least = trips * 4 * (32 * 64 + 64 * 64 + 32 * 64)
    assert least <= moved < 4 * least
