import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rar_jax.models.rar import RAR
from rar_jax.models.sizes import ModelConfig
from rar_jax.orders import scan_order
from rar_jax.sampling.cached import prepare
from rar_jax.sampling.choose import Choice
from rar_jax.sampling.decode import decode
from rar_jax.sampling.drawing import Batch, image_orders
from rar_jax.sampling.groups import Plan
from rar_jax.sampling.guidance import guidance_weights, guide
from rar_jax.sampling.options import TracedOptions

APPLY = jax.jit(RAR.apply, static_argnums=0)
PREPARE = jax.jit(prepare, static_argnums=(0, 2))
DECODE = jax.jit(decode, static_argnames=("model", "plan"))
ONE_BY_ONE = Plan((1,) * 16)
FOURS = Plan((4,) * 4)


BATCH = Batch(np.arange(6, dtype=np.int32), np.arange(6))
GREEDY = TracedOptions(
    key=jax.random.key(3),
    order=jnp.asarray(scan_order("z_curve", 4)),
    weights=guidance_weights("pow_cosine", 16, 3.0, 1.5),
    choice=Choice(None),
)


@pytest.fixture(scope="module")
def draw(golden, golden_model):
    """Draws images of the golden model: (batch, options, plan) -> tokens and pace."""
    return functools.partial(DECODE, golden_model, PREPARE(golden_model, golden.params, True))


@pytest.mark.parametrize("sizes", [(2,) * 8, (4,) * 4, (5, 5, 5, 1), (16,)], ids=str)
@pytest.mark.parametrize("order", ["random", None])
def test_verified_greedy_tokens_are_those_of_one_token_a_pass(draw, sizes, order):
    expected, _ = draw(BATCH, GREEDY, ONE_BY_ONE._replace(drawn_order=order))
    tokens, pace = draw(BATCH, GREEDY, Plan(sizes, order, verify=True))
    np.testing.assert_array_equal(tokens, expected)
    assert (pace.passes >= -(-16 // sizes[0])).all() and (pace.passes <= 2 * 16).all()
    assert (pace.accepted <= pace.examined).all() and not pace.examined[:, 0].any()
    # Each pass gives its first token and those that were accepted; the last pass may only verify.
    total = pace.passes + pace.accepted.sum(axis=1)
    assert ((total == 16) | (total == 17)).all()
    # A token is examined only after the one before it was accepted.
    assert (pace.examined[:, 2:] <= pace.accepted[:, 1:-1]).all()


@functools.cache
def tiny():
    """A network of four tokens and three codes that is far from uniform, and the probability of each image."""
    config = ModelConfig(
        grid_side=2, codebook_size=3, num_classes=2, width=16, depth=2, num_heads=2, mlp_width=16, dropout=0.0,
        attention_dropout=0.0,
    )  # fmt: skip
    model = RAR(config)
    zeros = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), zeros, zeros[0], jnp.arange(4)[None])["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [leaf + 0.3 * rng.standard_normal(leaf.shape).astype("f") for leaf in leaves])
    return model, params


def joint(model, params, order, choice_logits):
    """The probability of every image of class 1, by full forward passes in an order: [V**T]."""
    images = np.array(list(itertools.product(range(3), repeat=4)), np.int32)
    visited = images[:, order]
    orders = np.tile(order, (len(images), 1))
    logits = APPLY(model, {"params": params}, visited[:, :-1], np.ones(len(images), np.int32), orders)
    log_p = jax.nn.log_softmax(choice_logits(logits))
    log_p = np.take_along_axis(np.asarray(log_p, np.float64), visited[..., None], axis=2)
    return np.exp(log_p[..., 0].sum(axis=1))


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (4,)], ids=str)
def test_verified_images_follow_the_distribution_of_one_token_a_pass(sizes):
    """Chi-square of 30,000 images against the exact probabilities of all 81 images."""
    model, params = tiny()
    order, count = np.array([2, 0, 3, 1]), 30_000
    batch = Batch(np.ones(count, np.int32), jnp.arange(count))
    options = TracedOptions(jax.random.key(1), jnp.asarray(order), None, Choice(jnp.float32(0.7)))
    prepared = PREPARE(model, params, False)
    images, pace = DECODE(model, prepared, batch, options, Plan(sizes, verify=True))
    observed = np.bincount(np.asarray(images) @ 3 ** np.arange(3, -1, -1), minlength=81)
    expected = count * joint(model, params, order, lambda logits: logits / 0.7)
    assert 0.02 < 1 - pace.accepted.sum() / pace.examined.sum() < 0.9
    rare = expected < 10
    observed, expected = (np.append(each[~rare], each[rare].sum()) for each in (observed, expected))
    assert scipy.stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3
    # Without verification the tokens of a group are independent, and the test can tell.
    images, _ = DECODE(model, prepared, batch, options, Plan(sizes))
    observed = np.bincount(np.asarray(images) @ 3 ** np.arange(3, -1, -1), minlength=81)
    observed = np.append(observed[~rare], observed[rare].sum())
    assert scipy.stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue < 1e-6


@pytest.mark.parametrize("order", [None, "random", "spread"])
def test_nothing_masked_returns_the_tokens_and_everything_masked_samples(golden, draw, order):
    tokens = np.tile(golden["tokens"], (2, 1))[:6].astype(np.int32)
    plan = FOURS._replace(drawn_order=order)
    options = GREEDY._replace(choice=Choice(jnp.float32(0.9)))
    same, pace = draw(BATCH._replace(tokens=tokens, masked=np.zeros((6, 16), bool)), options, plan)
    np.testing.assert_array_equal(same, tokens)
    assert not pace.passes.any()
    drawn, pace = draw(BATCH._replace(tokens=tokens, masked=np.ones((6, 16), bool)), options, plan)
    expected, _ = draw(BATCH, options, plan)
    np.testing.assert_array_equal(drawn, expected)
    assert (pace.passes == 4).all()


@pytest.mark.parametrize("plan", [ONE_BY_ONE, FOURS._replace(verify=True)], ids=["one by one", "verified"])
def test_each_image_has_a_mask_of_its_own(golden, golden_model, draw, plan):
    """Greedy tokens of a partly known image equal those of full forward passes, one masked token at a time."""
    tokens = np.tile(golden["tokens"], (2, 1))[:6].astype(np.int32)
    masked = np.arange(16) < np.array([0, 1, 4, 7, 15, 16])[:, None]
    masked = np.random.default_rng(0).permuted(masked, axis=1)
    # Guidance is strong, so that the tokens also depend on the rows of the null class.
    weights = guidance_weights("linear", 16, 20.0, 1.0)
    drawn, _ = draw(BATCH._replace(tokens=tokens, masked=masked), GREEDY._replace(weights=weights), plan)
    np.testing.assert_array_equal(np.asarray(drawn)[~masked], tokens[~masked])
    z_curve = scan_order("z_curve", 4)
    for image, label, mask, result in zip(tokens, BATCH.labels, masked, np.asarray(drawn), strict=True):
        order = np.concatenate([z_curve[~mask[z_curve]], z_curve[mask[z_curve]]])
        visited = np.where(mask, 0, image)[order]
        labels, orders = np.array([label, golden_model.config.null_class]), np.stack([order, order])
        for t in range((~mask).sum(), 16):
            both = np.stack([visited, visited])
            conditional, null = APPLY(golden_model, {"params": golden.params}, both[:, :-1], labels, orders)[:, t]
            visited[t] = np.argmax(guide(conditional, null, weights[t]))
        np.testing.assert_array_equal(result[order], visited)


def test_random_orders_of_an_edit_are_those_of_sampling(golden_model):
    """The masked positions are drawn in the order in which sampling draws them, after the known ones in that order."""
    known = np.random.default_rng(0).random((6, 16)) < 0.4
    plan = FOURS._replace(drawn_order="random")
    orders = [
        np.asarray(image_orders(golden_model, BATCH._replace(masked=masked), GREEDY, plan))
        for masked in (None, jnp.asarray(~known))
    ]
    for whole, edited, given in zip(*orders, known, strict=True):
        np.testing.assert_array_equal(edited, np.concatenate([whole[given[whole]], whole[~given[whole]]]))
