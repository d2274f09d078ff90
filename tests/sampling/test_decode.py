import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import rar_jax.sampling.decode
from rar_jax.config import RAR_SIZES
from rar_jax.models.rar import RAR
from rar_jax.models.sizes import ModelConfig
from rar_jax.orders import SCAN_ORDERS, scan_order
from rar_jax.orders.drawn import random_orders
from rar_jax.sampling.cached import CachedNetwork, prepare
from rar_jax.sampling.choose import Choice, choose_token
from rar_jax.sampling.decode import decode, decode_segments, run_loop
from rar_jax.sampling.drawing import Batch
from rar_jax.sampling.groups import Plan, group_sizes
from rar_jax.sampling.guidance import GUIDANCE_SCHEDULES, guidance_weights, guide
from rar_jax.sampling.options import TracedOptions

APPLY = jax.jit(RAR.apply, static_argnums=0)
PREPARE = jax.jit(prepare, static_argnums=(0, 2))
DECODE = jax.jit(decode, static_argnames=("model", "plan"))
ONE_BY_ONE = Plan((1,) * 16)


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def forced_logits(model, params, tokens, labels, orders, guided=False, sizes=(1,) * 16):
    """Returns logits [R, T, V] of a cached decode with given tokens [B, T] in grid order, each row in its own order."""
    visited = jnp.take_along_axis(tokens, orders, axis=1)
    network = CachedNetwork(model, params, labels, orders, guided)
    return run_loop(network, lambda t, logits: (visited[:, t], logits), sizes)


@pytest.mark.parametrize(("few_rows", "num_stages"), [(True, 4), (False, 2), (True, 8), (False, 5)])
def test_golden(golden, golden_model, few_rows, num_stages, monkeypatch):
    """Rows of the null class give the golden logits if they are given as labels, and if guidance adds them."""
    monkeypatch.setattr(rar_jax.sampling.decode, "_num_stages", lambda model, rows: num_stages)
    forced_logits.clear_cache()
    labels = np.concatenate([golden["class_labels"], np.full(4, golden.config["classes"])]).astype(np.int32)
    tokens = np.tile(golden["tokens"], (2, 1)).astype(np.int32)
    orders = np.tile(np.arange(16, dtype=np.int32), (8, 1))
    prepared = PREPARE(golden_model, golden.params, few_rows)
    logits = forced_logits(golden_model, prepared, tokens, labels, orders)
    np.testing.assert_allclose(logits, golden["decode/logits"], atol=2e-5, rtol=0)
    if num_stages == 4:
        guided = forced_logits(golden_model, prepared, tokens[:4], labels[:4], orders[:4], True)
        np.testing.assert_allclose(guided, golden["decode/logits"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("few_rows", [True, False])
def test_bfloat16_decodes_like_float32(golden, golden_model, few_rows):
    labels = np.concatenate([golden["class_labels"], np.full(4, golden.config["classes"])]).astype(np.int32)
    tokens = np.tile(golden["tokens"], (2, 1)).astype(np.int32)
    orders = np.tile(np.arange(16, dtype=np.int32), (8, 1))
    model, exact = golden_model.clone(dtype=jnp.bfloat16), golden["decode/logits"]
    logits = forced_logits(model, PREPARE(model, golden.params, few_rows), tokens, labels, orders)
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - exact).max() < 0.02 * np.abs(exact).max()


def test_stages_cover_every_token_once():
    """RAR-B uses more stages if the cache is a larger share of the bytes that a step reads: at batch 1, 8 and 128."""
    model = RAR(RAR_SIZES["rar_b"][0])
    lengths = {
        sequences: [segment.length for segment in decode_segments(model, sequences, (1,) * 256)]
        for sequences in (2, 16, 256)
    }
    assert lengths[16] == [65, 129, 193, 257]
    assert [len(each) for each in lengths.values()] == [2, 4, 8]
    for sequences in lengths:
        counts = np.concatenate([segment.counts for segment in decode_segments(model, sequences, (1,) * 256)])
        # The prefill predicts the first token, and the last one is not read.
        np.testing.assert_array_equal(counts, np.arange(255))


@pytest.mark.parametrize(
    "sizes", [(1,) * 16, (4,) * 4, (16,), (1, 2, 3, 4, 6), (3, 2, 3, 3, 2, 3), group_sizes("cosine", 16, 7)], ids=str
)
@pytest.mark.parametrize(("guided", "few_rows"), [(False, True), (True, False)])
def test_a_branch_is_the_full_forward_of_the_swapped_order(golden, golden_model, sizes, guided, few_rows):
    """After k tokens, branch j predicts what a full forward pass predicts next if pi_(k+j) is the next position."""
    rng = np.random.default_rng(2)
    tokens = rng.integers(24, size=(3, 16)).astype(np.int32)
    labels = rng.integers(8, size=3).astype(np.int32)
    orders = np.stack([rng.permutation(16) for _ in range(3)]).astype(np.int32)
    prepared = PREPARE(golden_model, golden.params, few_rows)
    branches = forced_logits(golden_model, prepared, tokens, labels, orders, guided, sizes)
    labels = np.concatenate([labels, np.full(3, golden_model.config.null_class)]) if guided else labels
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    for t, k in enumerate(starts):
        swapped = np.tile(orders, (len(labels) // 3, 1))
        swapped[:, [k, t]] = swapped[:, [t, k]]
        visited = np.take_along_axis(np.tile(tokens, (len(labels) // 3, 1)), swapped, axis=1)
        full = APPLY(golden_model, {"params": golden.params}, visited[:, :-1], labels, swapped)[:, k]
        np.testing.assert_allclose(branches[:, t], full, atol=2e-5, rtol=0, err_msg=f"{t=} {k=}")


def test_batches_of_other_shapes_give_the_same_logits(golden, golden_model):
    """Logits agree within 1e-5, because matrix products of other shapes round differently."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(24, size=(8, 16)).astype(np.int32)
    labels = rng.integers(8, size=8).astype(np.int32)
    orders = np.stack([rng.permutation(16) for _ in range(8)]).astype(np.int32)
    prepared = PREPARE(golden_model, golden.params, True)
    whole = forced_logits(golden_model, prepared, tokens, labels, orders, True).reshape(2, 8, 16, 24)
    for rows in (slice(0, 1), slice(5, 8)):
        few = forced_logits(golden_model, prepared, tokens[rows], labels[rows], orders[rows], True)
        np.testing.assert_allclose(few.reshape(2, -1, 16, 24), whole[:, rows], atol=1e-5, rtol=0)


def by_full_forwards(model, params, labels, orders, key, weights, choice):
    """A plain reference, which samples each token from whole forward passes, one of them for the null class."""
    # Tokens that are not chosen yet are zeros, which the causal mask hides. So one shape is compiled once.
    visited = np.zeros((len(labels), model.config.num_tokens), np.int32)
    for t in range(model.config.num_tokens):
        logits = APPLY(model, {"params": params}, visited[:, :-1], labels, orders)[:, t]
        if weights is not None:
            null = np.full_like(labels, model.config.num_classes)
            unconditional = APPLY(model, {"params": params}, visited[:, :-1], null, orders)[:, t]
            logits = guide(logits, unconditional, weights[t])
        keys = jnp.stack([jax.random.fold_in(jax.random.fold_in(key, row), t) for row in range(len(labels))])
        visited[:, t] = choose_token(keys, logits, choice)
    tokens = np.zeros_like(visited)
    np.put_along_axis(tokens, np.asarray(orders), visited, axis=1)
    return tokens


def assert_equals_the_oracle(golden, golden_model, order, weights, choice):
    labels, key, rows = np.array([0, 3, 6], np.int32), jax.random.key(5), jnp.arange(3)
    order = None if order is None else jnp.asarray(scan_order(order, 4))
    prepared = PREPARE(golden_model, golden.params, True)
    plan = ONE_BY_ONE._replace(drawn_order="random" if order is None else None)
    options = TracedOptions(key, order, weights, choice)
    tokens, _ = DECODE(golden_model, prepared, Batch(labels, rows), options, plan)
    orders = random_orders(key, rows, 16) if order is None else jnp.tile(order, (3, 1))
    expected = by_full_forwards(golden_model, golden.params, labels, orders, key, weights, choice)
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize("order", [*SCAN_ORDERS, None])
@pytest.mark.parametrize("guided", [True, False])
def test_greedy_decode_equals_the_oracle(golden, golden_model, order, guided):
    weights = guidance_weights("pow_cosine", 16, 4.0, 1.5) if guided else None
    assert_equals_the_oracle(golden, golden_model, order, weights, Choice(None))


@pytest.mark.parametrize("schedule", GUIDANCE_SCHEDULES)
@pytest.mark.parametrize("choice", [Choice(0.8), Choice(1.3, top_k=5), Choice(1.1, top_p=0.8), Choice(1.5, 7, 0.9)])
def test_sampled_decode_equals_the_oracle(golden, golden_model, schedule, choice):
    weights = guidance_weights(schedule, 16, 4.0, 1.5)
    assert_equals_the_oracle(golden, golden_model, None, weights, choice)


def test_random_orders_are_permutations_of_their_own():
    key = jax.random.key(0)
    orders = np.asarray(random_orders(key, jnp.arange(400), 16))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(16), (400, 1)))
    np.testing.assert_array_equal(orders[7:9], random_orders(key, jnp.array([7, 8]), 16))
    # The position at each place is uniform by a chi-square test, at a level of 1e-4 over the 16 places.
    for place in range(16):
        assert scipy.stats.chisquare(np.bincount(orders[:, place], minlength=16)).pvalue > 1e-4 / 16


def sample(model, params, labels, rows, seed=0, weights=None, temperature=1.0):
    order = jnp.asarray(scan_order("row_major", 4))
    batch = Batch(np.asarray(labels, np.int32), np.asarray(rows))
    options = TracedOptions(jax.random.key(seed), order, weights, Choice(temperature))
    return np.asarray(DECODE(model, PREPARE(model, params, True), batch, options, ONE_BY_ONE)[0])


def test_an_image_depends_on_its_row_number_and_seed_alone(golden, golden_model):
    weights = guidance_weights("pow_cosine", 16, 3.0, 1.0)
    labels = np.arange(6)
    whole = sample(golden_model, golden.params, labels, np.arange(6), weights=weights)
    part = sample(golden_model, golden.params, labels[2:5], np.arange(2, 5), weights=weights)
    np.testing.assert_array_equal(whole[2:5], part)
    assert (whole != sample(golden_model, golden.params, labels, np.arange(6), seed=1, weights=weights)).any()


def test_unit_guidance_weights_change_nothing(golden, golden_model):
    labels = np.arange(6)
    guided = sample(golden_model, golden.params, labels, labels, weights=np.ones(16, np.float32))
    np.testing.assert_array_equal(guided, sample(golden_model, golden.params, labels, labels))


def test_first_token_follows_the_model():
    """Over many rows, the first tokens follow the softmax of the logits, and rows are drawn independently."""
    model = RAR(
        ModelConfig(
            grid_side=2,
            codebook_size=4,
            num_classes=2,
            width=16,
            depth=1,
            num_heads=2,
            mlp_width=16,
            dropout=0.0,
            attention_dropout=0.0,
        )
    )
    ones = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), ones, ones[0], jnp.arange(4)[None])["params"]
    params["lm_head"]["bias"] = jnp.array([0.0, 1.0, -1.0, 0.5])
    rows = 20_000
    batch = Batch(jnp.ones(rows, jnp.int32), jnp.arange(rows))
    order = jnp.asarray(scan_order("row_major", 2))
    options = TracedOptions(jax.random.key(2), order, None, Choice(1.0))
    tokens, _ = DECODE(model, PREPARE(model, params, True), batch, options, Plan((1,) * 4))
    logits = APPLY(model, {"params": params}, ones, ones[0] + 1, order[None])[:, 0]
    observed = np.bincount(np.asarray(tokens[:, 0]), minlength=4) / rows
    np.testing.assert_allclose(observed, jax.nn.softmax(logits[0]), atol=0.015)
