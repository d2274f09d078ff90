import collections
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rar_jax.config import OptimizerConfig
from rar_jax.models.rar import RAR
from rar_jax.models.sizes import ModelConfig
from rar_jax.orders import scan_order
from rar_jax.parallel.mesh import make_mesh, put_batch
from rar_jax.performance.collectives import collectives
from rar_jax.performance.costs import block_kernels
from rar_jax.performance.hlo_text import parse
from rar_jax.training.optimizer import adamw
from rar_jax.training.program import Program
from rar_jax.training.state import init_state
from rar_jax.training.step import StepConfig, draw_examples, drop_labels, eval_step, token_losses

MODEL = RAR(
    ModelConfig(
        grid_side=4,
        codebook_size=11,
        num_classes=5,
        width=32,
        depth=2,
        num_heads=4,
        mlp_width=64,
        dropout=0.1,
        attention_dropout=0.1,
    )
)
STEP_CONFIG = StepConfig(seed=3, scan_order=scan_order("row_major", 4), anneal_start=2, anneal_end=4)
OPTIMIZER = adamw(OptimizerConfig(), lambda step: 1e-2)
BATCH = 16


def batches(count):
    rng = np.random.default_rng(0)
    shapes = (BATCH, 16), BATCH
    return [
        {
            name: rng.integers(n, size=shape).astype(np.int32)
            for name, n, shape in zip(("tokens", "label"), (11, 5), shapes, strict=True)
        }
        for _ in range(count)
    ]


def program(model=MODEL, step_config=STEP_CONFIG):
    init = functools.partial(init_state, model, OPTIMIZER, 0, step_config.ema_decay > 0)
    return Program(model, step_config, lambda step: 1e-2, OPTIMIZER, init)


def compiled(model, shape):
    built = program(model)
    mesh = make_mesh(shape, jax.devices()[: math.prod(shape)])
    return built.lower_step(mesh, jax.eval_shape(built.init), batches(1)[0]).compile()


def run(shape, steps=5, model=MODEL, step_config=STEP_CONFIG):
    """Returns the losses and gradient norms of a few steps on a mesh, the final state, and the orders of each step."""
    mesh = make_mesh(shape, jax.devices()[: math.prod(shape)])
    built = program(model, step_config)
    state = jax.jit(built.init, out_shardings=built.shardings(mesh))()
    step = built.compile_step(mesh, state, batches(1)[0])
    draw = jax.jit(functools.partial(draw_examples, model, step_config))
    losses, orders = [], []
    for batch in batches(steps):
        batch = put_batch(batch, mesh)
        orders.append(np.asarray(draw(state.step, batch)[0]["order"]))
        state, metrics = step(state, batch)
        losses.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return np.array(losses), state, np.array(orders)


@pytest.fixture(scope="module")
def one_device():
    return run((1, 1))


SPLITS = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 1, 4), (1, 2, 4), (4, 1, 2), (2, 2, 2), (1, 1, 4)]


@pytest.mark.parametrize("shape", SPLITS)
def test_mesh_changes_nothing(one_device, shape):
    """Dropout is on, because its masks must not depend on the mesh either."""
    losses, state, orders = one_device
    other_losses, other_state, other_orders = run(shape)
    np.testing.assert_array_equal(orders, other_orders)
    np.testing.assert_allclose(losses, other_losses, rtol=1e-5)
    kernel, other = (s.params["blocks"]["mlp"]["fc1"]["kernel"] for s in (state, other_state))
    np.testing.assert_allclose(kernel, other, atol=1e-4)
    shard = other.addressable_shards[0].data
    assert shard.size == other.size // (shape[1] * shape[2])


def test_orders_follow_the_annealing(one_device):
    """r is 1, 1, 1, 0.5, 0 over the five steps, and each step draws orders of its own."""
    orders = one_device[2]
    permuted = (orders != STEP_CONFIG.scan_order).any(axis=-1).mean(axis=1)
    assert (permuted[:3] == 1).all() and 0 < permuted[3] < 1 and permuted[4] == 0
    assert (orders[0] != orders[1]).any(axis=-1).all()


def test_accumulation_gives_the_same_update():
    model = MODEL.clone(config=dataclasses.replace(MODEL.config, dropout=0.0, attention_dropout=0.0))
    whole = run((2, 1), steps=3, model=model)
    parts = run((2, 1), steps=3, model=model, step_config=StepConfig(**vars(STEP_CONFIG) | {"accumulation": 4}))
    np.testing.assert_array_equal(whole[2], parts[2])
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), whole[1].params, parts[1].params)


def test_microbatches_have_dropout_masks_of_their_own(one_device):
    """The rows of a batch are pairs of equal ones, so that both microbatches are the same but for dropout."""
    model = MODEL.clone(config=dataclasses.replace(MODEL.config, dropout=0.5, attention_dropout=0.5))
    step_config = StepConfig(3, STEP_CONFIG.scan_order, 0, 0, label_dropout=0.0, accumulation=2)
    state = one_device[1]
    batch = jax.tree.map(lambda each: np.repeat(each[::2], 2, axis=0), batches(1)[0])
    examples, key = draw_examples(model, step_config, state.step, batch)
    half = jax.tree.map(lambda each: each[::2], examples)
    loss = jax.jit(lambda key: token_losses(model, state.params, half, key)[0].mean())
    first, second = (float(loss(jax.random.fold_in(key, i))) for i in range(2))
    _, metrics = jax.jit(program(model, step_config).step)(state, batch)
    assert first != pytest.approx(second, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx((first + second) / 2, rel=1e-6)


def test_moving_average():
    """The average is shorter at first: at update n, from 0, its decay is at most (1 + n) / (10 + n)."""
    step_config = StepConfig(**vars(STEP_CONFIG) | {"ema_decay": 0.15})
    initial = jax.jit(functools.partial(init_state, MODEL, OPTIMIZER, 0, True))()
    expected = np.asarray(initial.params["lm_head"]["kernel"])
    for steps, decay in ((1, 0.1), (2, 0.15)):
        state = run((1, 1), steps=steps, step_config=step_config)[1]
        expected = decay * expected + (1 - decay) * np.asarray(state.params["lm_head"]["kernel"])
        np.testing.assert_allclose(state.ema["lm_head"]["kernel"], expected, atol=1e-6)
    assert state.sampling_params is state.ema


def test_bfloat16_trains_like_float32(one_device):
    losses, state, _ = run((1, 1), model=MODEL.clone(dtype=jnp.bfloat16))
    np.testing.assert_allclose(losses, one_device[0], rtol=0.02)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))


def test_drop_labels():
    labels = jnp.tile(jnp.arange(5), 4000)
    dropped = drop_labels(jax.random.key(0), labels, 0.1, null_class=5)
    share = np.mean(dropped == 5)
    assert abs(share - 0.1) < 4 * np.sqrt(0.09 / len(labels))
    np.testing.assert_array_equal(np.asarray(dropped)[dropped != 5], np.asarray(labels)[dropped != 5])
    np.testing.assert_array_equal(drop_labels(jax.random.key(0), labels, 0.0, null_class=5), labels)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_examples_are_visited_in_their_orders_and_have_dropped_labels(rate):
    batch = batches(1)[0]
    step_config = dataclasses.replace(STEP_CONFIG, label_dropout=rate)
    examples, _ = draw_examples(MODEL, step_config, jnp.int32(0), batch)
    np.testing.assert_array_equal(examples["label"], np.full(BATCH, 5) if rate else batch["label"])
    visited = np.take_along_axis(batch["tokens"], np.asarray(examples["order"]), axis=1)
    np.testing.assert_array_equal(examples["visited"], visited)


def test_eval_step_counts_each_image_once_in_both_orders(one_device):
    params = one_device[1].params
    batch = batches(1)[0] | {"number": np.arange(BATCH, dtype=np.int32), "weight": np.ones(BATCH, np.float32)}
    evaluate = jax.jit(functools.partial(eval_step, model=MODEL, step_config=STEP_CONFIG))
    whole = evaluate(params, batch)
    padded = evaluate(params, batch | {"weight": np.arange(BATCH, dtype=np.float32) < 10})
    rest = evaluate(params, batch | {"weight": np.arange(BATCH, dtype=np.float32) >= 10})
    for name, total in whole.items():
        assert float(padded[name] + rest[name]) == pytest.approx(float(total), rel=1e-5)
    # The order of an image is that of its number, wherever it stands in a batch.
    numbers = 100 + np.random.default_rng(1).permutation(BATCH).astype(np.int32)
    moved = evaluate(params, batch | {"number": numbers})
    key = jax.random.key(STEP_CONFIG.seed)
    random = np.stack([jax.random.permutation(jax.random.fold_in(key, number), 16) for number in numbers])
    for name, orders in (("target", np.tile(STEP_CONFIG.scan_order, (BATCH, 1))), ("random", random)):
        examples = {"visited": np.take_along_axis(batch["tokens"], orders, axis=1), "order": orders}
        losses, hits = jax.jit(token_losses, static_argnums=0)(MODEL, params, examples | {"label": batch["label"]})
        assert float(moved[f"{name}_loss"]) == pytest.approx(float(losses.mean() * BATCH), rel=1e-5)
        assert float(moved[f"{name}_accuracy"]) == pytest.approx(float(hits.mean() * BATCH), rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 4), (1, 8, 1)])
def test_devices_share_the_work_without_repeating_any(shape):
    """XLA counts the FLOPs per device. All axes divide the images; tensor also divides the heads and hidden units."""
    model = MODEL.clone(
        config=dataclasses.replace(MODEL.config, width=64, mlp_width=256, dropout=0.0, attention_dropout=0.0)
    )
    devices = math.prod(shape)
    one, several = (compiled(model, mesh).cost_analysis()["flops"] for mesh in ((1, 1, 1), shape))
    assert several < one / devices * 1.2


def test_kernels_are_gathered_once_per_pass_and_gradients_are_reduced_in_shards():
    """Counts the bytes sent in the loops over blocks, in units of all kernels, on a mesh of data 2 x fsdp 4.

    A gather over N devices sends (N - 1) / N.
    """
    model = MODEL.clone(remat="block")
    kernels = 4 * model.config.depth * (block_kernels(model.config) + 6 * model.config.width**2)
    sent = collections.Counter()
    for each in collectives(parse(compiled(model, (2, 4, 1)).as_text()), 8):
        if each.count == model.config.depth:
            sent[each.kind, each.devices] += each.count * each.sent / kernels
    # Kernels are gathered in the forward pass, and again when the backward pass recomputes it.
    assert sent["all-gather", 4] == pytest.approx(2 * 3 / 4)
    # Gradients are reduced over fsdp, and then each shard over data. XLA's CPU compiler has no reduce-scatter, and an
    # all-reduce sends twice as much. Only biases and norms are reduced over all 8 devices.
    assert sent["all-reduce", 4] + sent["reduce-scatter", 4] <= 2 * 3 / 4 * 1.01
    assert sent["all-reduce", 2] == pytest.approx(1 / 4)
    assert sent["all-reduce", 8] < 0.1
