import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rar_jax.parallel.mesh import make_mesh
from rar_jax.performance.collectives import collectives
from rar_jax.performance.hlo_text import parse

TPU = """
HloModule jit_step, is_scheduled=true

%fused_1 (p: bf16[4,8]) -> bf16[4,64] {
  %all-gather.1 = bf16[4,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={1}, frontend_attributes={chain_id="0"}
}

%fused_2 (p: bf16[4,8]) -> bf16[4,64] {
  %all-gather.2 = bf16[4,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={1}, frontend_attributes={chain_id="0"}
}

%all-reduce-scatter.1 (p: bf16[4,64]) -> bf16[4,8] {
  %all-reduce.2 = bf16[4,64]{1,0} all-reduce(%p), channel_id=8, replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, to_apply=%add
  ROOT %dynamic-slice.1 = bf16[4,8]{1,0} dynamic-slice(%all-reduce.2, %zero, %place)
}

%condition (p: (s32[], bf16[4,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(40)
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %fusion.1 = bf16[4,64]{1,0} fusion(%p), kind=kCustom, calls=%fused_1
  %fusion.2 = bf16[4,64]{1,0} fusion(%fusion.1), kind=kCustom, calls=%fused_2
  %fusion.3 = bf16[4,8]{1,0} fusion(%w), kind=kCustom, calls=%all-reduce-scatter.1
  %all-reduce.9 = (bf16[4,8]{1,0}, f32[2]{0}) all-reduce(%x, %y), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

ENTRY %main (p: bf16[4,8]) -> bf16[4,8] {
  %while.1 = (s32[], bf16[4,8]) while(%t), condition=%condition, body=%body
  ROOT %reduce-scatter.5 = f32[2,8]{1,0} reduce-scatter(%z), channel_id=5, replica_groups=[2,8]<=[16], dimensions={1}, to_apply=%add
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}
"""  # noqa: E501


def test_a_schedule_by_hand():
    """A TPU program: an overlapped gather in two stages runs forty times; the other collectives are not overlapped."""
    assert sorted(collectives(parse(TPU), 16)) == [
        ("all-gather", 8, 40, 4 * 64 * 2 * 7 / 8, True),
        ("all-reduce", 4, 40, (4 * 8 * 2 + 2 * 4) * 2 * 3 / 4, False),
        ("reduce-scatter", 8, 1, 2 * 8 * 4 * 7, False),
        ("reduce-scatter", 8, 40, 4 * 64 * 2 * 7 / 8, False),
    ]


@pytest.mark.parametrize("iterations", [1, 7])
def test_a_compiled_loop(iterations):
    """Eight devices gather weights and reduce a mean in each iteration: the bytes sent are known."""
    mesh = make_mesh((2, 4))

    def step(x, weights):
        def body(x, weight):
            whole = jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(x @ whole), (x**2).mean()

        return jax.lax.scan(body, x, weights)

    rows, columns = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec(("data", "fsdp")), PartitionSpec(None, None, "fsdp"))
    )
    shapes = jax.ShapeDtypeStruct((16, 32), jnp.float32), jax.ShapeDtypeStruct((iterations, 32, 32), jnp.float32)
    text = jax.jit(step, in_shardings=(rows, columns)).lower(*shapes).compile().as_text()
    found = collectives(parse(text), 8)
    gathered = [each for each in found if each.kind == "all-gather"]
    assert sum(each.count * each.sent for each in gathered) == iterations * 32 * 32 * 4 * 3 / 4
    assert {each.devices for each in gathered} == {4}
    reduced = [each for each in found if each.kind == "all-reduce"]
    assert sum(each.count * each.sent for each in reduced) == pytest.approx(iterations * 4 * 2 * 7 / 8)


def test_nothing_is_sent_by_one_device():
    text = jax.jit(functools.partial(jnp.sum, axis=0)).lower(jnp.ones((4, 4))).compile().as_text()
    assert collectives(parse(text), 1) == []
