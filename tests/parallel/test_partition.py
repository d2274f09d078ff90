import functools
import math

import jax
import pytest
from jax.sharding import PartitionSpec

from rar_jax.config import OptimizerConfig
from rar_jax.models.rar import RAR
from rar_jax.models.sizes import ModelConfig
from rar_jax.parallel.mesh import make_mesh
from rar_jax.parallel.partition import partition_spec, shardings
from rar_jax.training.optimizer import adamw
from rar_jax.training.state import init_state


@pytest.mark.parametrize(
    ("path", "spec"),
    [
        ("params/blocks/mlp/fc1/kernel", PartitionSpec(None, "fsdp", "tensor")),
        ("opt_state/1/0/mu/blocks/attention/qkv/kernel", PartitionSpec(None, ("fsdp", "tensor"), None)),
        ("params/blocks/attention/proj/kernel", PartitionSpec(None, "tensor", "fsdp")),
        ("params/blocks/mlp/fc1/bias", PartitionSpec()),
        ("params/lm_head/kernel", PartitionSpec(("fsdp", "tensor"), None)),
        ("ema/target_aware_embedding", PartitionSpec(None, ("fsdp", "tensor"))),
        ("params/cls_token", PartitionSpec()),
    ],
)
def test_rules(path, spec):
    assert partition_spec(path) == spec


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 4, 2), (1, 1, 8)])
def test_the_state_of_the_largest_model_is_spread_evenly(shape):
    """On 8 devices, each device holds an eighth of RAR-XXL's parameters and moments, and at most 1% more."""
    model = RAR(
        ModelConfig(
            grid_side=16,
            codebook_size=1024,
            num_classes=1000,
            width=1408,
            depth=40,
            num_heads=16,
            mlp_width=6144,
            dropout=0.0,
            attention_dropout=0.0,
        )
    )
    state = jax.eval_shape(functools.partial(init_state, model, adamw(OptimizerConfig(), lambda step: 1e-3), 0, True))
    layout = shardings(state, make_mesh(shape))
    whole = sum(x.size for x in jax.tree.leaves(state))
    shard = sum(
        math.prod(s.shard_shape(x.shape)) for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(layout), strict=True)
    )
    assert shard < whole / 8 * 1.01
