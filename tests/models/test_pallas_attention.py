"""The kernels are interpreted. Compiling them for a GPU, which this machine lacks, is left to the command `aot`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attending import values_and_gradients
from jax.sharding import NamedSharding, PartitionSpec

from rar_jax.models.attention import causal_attention
from rar_jax.models.pallas_attention import pallas_attention
from rar_jax.parallel.mesh import make_mesh
from rar_jax.parallel.partition import on_mesh

ERRORS = {"float32": 3e-6, "bfloat16": 0.02}
# Every value of each, in the fewest cases. All pairs are marked long.
FEW = (
    ("float32", 48, True),
    ("bfloat16", 48, False),
    ("bfloat16", 64, True),
    ("float32", 80, False),
    ("bfloat16", 88, True),
)
ALL = itertools.product(ERRORS, (48, 64, 80, 88), (True, False))


def interpreted(q, k, v, seeds, rate):
    return pallas_attention(q, k, v, seeds, rate, interpret=True)


@pytest.mark.parametrize(
    ("dtype", "head_width", "dropped"),
    [*FEW, *(pytest.param(*case, marks=pytest.mark.long) for case in ALL if case not in FEW)],
)
def test_the_kernels_agree_with_xla(dtype, head_width, dropped):
    """S = 257 is no multiple of a block, and the width of a head is padded to a power of two."""
    shape = (1, 257, 2, head_width)
    ours = values_and_gradients(interpreted, dtype, dropped, shape)
    for a, b in zip(ours, values_and_gradients(causal_attention, "float32", dropped, shape), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(np.float32(a), b, atol=ERRORS[dtype] * np.abs(b).max())


def test_each_device_has_its_own_rows_and_heads():
    """Masks do not depend on the mesh, and no device gathers the rows or heads of others."""
    mesh = make_mesh((2, 1, 2), jax.devices()[:4])
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    programs = []

    def jit(function):
        jitted = jax.jit(on_mesh(function, mesh), in_shardings=sharding)
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 3
        programs.append(jitted.lower(*arrays).compile().as_text())
        return jitted

    shape = (4, 70, 4, 16)
    expected = values_and_gradients(causal_attention, "float32", True, shape)
    for a, b in zip(values_and_gradients(interpreted, "float32", True, shape, jit), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * np.abs(b).max())
    assert not any(kind in programs[0] for kind in ("all-gather", "all-to-all", "collective-permute"))
