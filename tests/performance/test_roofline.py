import pytest

from rar_jax.performance.chips import CHIPS
from rar_jax.performance.kernels import Kernel
from rar_jax.performance.roofline import LAUNCH, part, summary

BLOCK = "jit(step)/jvp(RAR)/RAR._apply_blocks/while/body/closed_call/blocks.layer/blocks.causal"
KERNELS = [
    # Bound by its bytes: 3 ms each time, and by its FLOPs: 2 ms.
    Kernel("copy.1", "copies", 4, 3 * 4.8e9, 0.0, 0.0, f"{BLOCK}/blocks/norm1/mul", (), "models/rar.py:1"),
    Kernel("dot.1", "products", 2, 4.8e9, 0.0, 2e-3 * 989e12, f"{BLOCK}/blocks/mlp/fc1/dot_general", (), ""),
]


def test_a_kernel_takes_the_longer_of_its_bytes_and_its_products():
    sections = summary(KERNELS, CHIPS["H200"])
    sums = sections["kernels per device"]
    assert sums["roofline, ms"] == pytest.approx(4 * 3 + 2 * 2)
    assert sums["kernels"] == 6 and sums["bytes moved, GB"] == pytest.approx(4.8 * (4 * 3 + 2))
    assert sums["roofline with launches, ms"] == pytest.approx(16 + 6e3 * LAUNCH)
    assert list(sections["kernels by part of the model"]) == ["norms", "MLP"]
    assert sections["kernels by kind"]["products"]["%"] == pytest.approx(25)
    assert sections["most costly kernels"]["copy.1"]["line"] == "models/rar.py:1"


def test_kernels_of_unrolled_layers_are_listed_together():
    layers = [KERNELS[0]._replace(name=f"copy.{number}") for number in range(3)]
    costly = summary([*layers, KERNELS[1]], CHIPS["H200"])["most costly kernels"]
    assert [(each["runs"], each["line"]) for each in costly.values()] == [(12, "models/rar.py:1"), (2, "unknown")]


def test_a_tpu_has_no_launches():
    assert summary(KERNELS, CHIPS["v5e"])["kernels per device"]["launches, ms"] == 0


@pytest.mark.parametrize(
    ("op_name", "files", "expected"),
    [
        (f"{BLOCK}/blocks/attention/bhqk,bkhd->bqhd/dot_general", (), "attention"),
        (f"{BLOCK}/blocks/attention/q_norm/rsqrt", (), "norms"),
        (f"{BLOCK}/blocks.modulate/modulation/dot_general", (), "modulation"),
        (f"{BLOCK}/blocks/add", (), "shift, scale, gate and residual"),
        (
            "jit(step)/jvp(RAR)/RAR._apply_blocks/while/body/jit(dynamic_update_index_in_dim)/dynamic_update_slice",
            (),
            "values kept by the loop over blocks",
        ),
        ("jit(step)/mul", ("/lib/optax/transforms/_adam.py", "/home/rar_jax/training/step.py"), "optimizer"),
        ("jit(step)/jit(_where)/select_n", ("/home/rar_jax/training/state.py",), "optimizer"),
        ("jit(run)/while/body/closed_call/jit(_apply_block)/Block/add", (), "shift, scale, gate and residual"),
        ("", (), "other"),
    ],
)
def test_the_part_of_the_model(op_name, files, expected):
    assert part(Kernel("fusion", "elementwise", 1, 0.0, 0.0, 0.0, op_name, files, "")) == expected
