import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rar_jax.checkpoints.pytorch import rar_to_pytorch
from rar_jax.models import rar
from rar_jax.models.dropout import Seeds, draw_seeds
from rar_jax.models.rar import RAR
from rar_jax.models.sizes import ModelConfig
from rar_jax.training.step import token_losses

APPLY = jax.jit(RAR.apply, static_argnums=0)


def init(model):
    """Returns the initial parameters. Initialisation is jitted, because without it takes seconds."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    orders = jnp.zeros((1, model.config.num_tokens), jnp.int32)
    return jax.jit(model.init)(jax.random.key(0), tokens, tokens[0], orders)["params"]


@pytest.fixture(scope="module")
def examples(golden):
    orders = golden["orders"].astype(np.int32)
    visited = np.take_along_axis(golden["tokens"], golden["orders"], axis=1).astype(np.int32)
    return {"visited": visited, "label": golden.labels, "order": orders}


def test_golden_logits(golden, golden_model, examples):
    logits = APPLY(golden_model, {"params": golden.params}, examples["visited"], examples["label"], examples["order"])
    assert logits.shape == (4, 17, 24)
    np.testing.assert_allclose(logits, golden["train_logits"], atol=2e-5, rtol=0)
    np.testing.assert_array_equal(examples["visited"], golden["train_labels"])


def test_golden_loss_and_gradients(golden, golden_model, examples):
    def loss_fn(params):
        losses, hits = token_losses(golden_model, params, examples)
        return losses.mean(), hits.mean()

    (loss, accuracy), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(golden.params)
    assert abs(loss - golden["loss"]) < 2e-5
    assert abs(accuracy - golden["accuracy"]) < 1e-7
    ours = rar_to_pytorch(grads)
    theirs = golden.tensors("grads/")
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error = np.abs(ours[name] - expected).max()
        assert error < max(1e-4 * np.abs(expected).max(), 1e-7), name


@pytest.mark.parametrize(
    ("name", "width", "depth", "mlp_width", "parameters"),
    [
        ("rar_b", 768, 24, 3072, 260_923_648),
        ("rar_l", 1024, 24, 4096, 461_668_352),
        ("rar_xl", 1280, 32, 5120, 955_425_024),
        ("rar_xxl", 1408, 40, 6144, 1_498_520_704),
    ],
)
def test_published_sizes(name, width, depth, mlp_width, parameters, golden_json):
    """The number of parameters, and the name and shape of every tensor, are the published ones."""
    model = RAR(
        ModelConfig(
            grid_side=16,
            codebook_size=1024,
            num_classes=1000,
            width=width,
            depth=depth,
            num_heads=16,
            mlp_width=mlp_width,
            dropout=0.0,
            attention_dropout=0.0,
        )
    )
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens[0], jnp.zeros((1, 256), jnp.int32))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    # Broadcast zeros take no memory.
    published = rar_to_pytorch(jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes))
    layout = golden_json("checkpoint_layouts.json")[name]
    assert {name: list(array.shape) for name, array in published.items()} == layout


@pytest.fixture(scope="module")
def random_case():
    """A small model whose parameters are all random, so that no zero hides a path."""
    model = RAR(
        ModelConfig(
            grid_side=4,
            codebook_size=11,
            num_classes=5,
            width=32,
            depth=2,
            num_heads=4,
            mlp_width=64,
            dropout=0.0,
            attention_dropout=0.0,
        )
    )
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), init(model))


@pytest.mark.parametrize("seed", range(5))
def test_causal(random_case, seed):
    """Changing a token changes no logits before it, and changes all logits after it."""
    model, params = random_case
    rng = np.random.default_rng(seed)
    tokens = rng.integers(11, size=(1, 16))
    order = rng.permutation(16)[None]
    k = int(rng.integers(15))
    changed = tokens.copy()
    changed[0, k] = (tokens[0, k] + 1 + rng.integers(10)) % 11
    label = np.array([2])
    before, after = (APPLY(model, {"params": params}, x, label, order)[0] for x in (tokens, changed))
    # Entry j has seen the first j tokens, so token k (from 0) is seen from entry k + 1 on.
    np.testing.assert_array_equal(before[: k + 1], after[: k + 1])
    assert (np.abs(before[k + 1 :] - after[k + 1 :]).max(axis=-1) > 1e-6).all()


@pytest.mark.parametrize("seed", range(5))
def test_target_awareness(random_case, seed):
    """Figure 3: after the same prefix, logits depend on the next position if and only if the model is target-aware."""
    model, params = random_case
    rng = np.random.default_rng(seed)
    order = rng.permutation(16)
    k = 7
    other = order.copy()
    other[[k, 15]] = order[[15, k]]
    tokens = rng.integers(11, size=(1, k))

    def last_logits(model, params, order):
        return APPLY(model, {"params": params}, tokens, np.array([1]), order[None])[0, -1]

    assert np.abs(last_logits(model, params, order) - last_logits(model, params, other)).max() > 1e-3
    unaware = model.clone(config=dataclasses.replace(model.config, target_aware=False))
    params = {name: value for name, value in params.items() if name != "target_aware_embedding"}
    np.testing.assert_array_equal(last_logits(unaware, params, order), last_logits(unaware, params, other))


def test_initialisation():
    """Kernels, embeddings and tables are normal(0.02); biases, the cls token and modulations are zero."""
    model = RAR(
        ModelConfig(
            grid_side=8,
            codebook_size=500,
            num_classes=100,
            width=64,
            depth=3,
            num_heads=4,
            mlp_width=256,
            dropout=0.0,
            attention_dropout=0.0,
        )
    )
    params = init(model)
    for path, value in rar_to_pytorch(params).items():
        if "adaLN" in path or path.endswith("bias") or path == "cls_token":
            assert not value.any(), path
        elif "norm" in path:
            assert (value == 1).all(), path
        else:
            assert abs(value.std() - 0.02) < 0.001 and abs(value.mean()) < 0.002, path
    kernels = np.asarray(params["blocks"]["mlp"]["fc1"]["kernel"])
    assert not np.array_equal(kernels[0], kernels[1])


def test_rematerialisation_changes_nothing(random_case):
    """Dropout is on, because rematerialisation must draw the same masks again."""
    model, params = random_case
    model = model.clone(config=dataclasses.replace(model.config, dropout=0.1, attention_dropout=0.1))
    rng = np.random.default_rng(0)
    examples = {
        "visited": rng.integers(11, size=(3, 16)),
        "label": np.arange(3),
        "order": np.stack([rng.permutation(16) for _ in range(3)]),
    }

    def gradients(model):
        return jax.jit(jax.grad(lambda p: token_losses(model, p, examples, jax.random.key(5))[0].mean()))(params)

    plain = gradients(model)
    for remat in ("block", "dots"):
        other = gradients(model.clone(remat=remat))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, other)


def test_bfloat16_compute_is_near_float32(random_case):
    model, params = random_case
    rng = np.random.default_rng(0)
    inputs = rng.integers(11, size=(2, 16)), np.array([0, 1]), np.stack([rng.permutation(16) for _ in range(2)])
    exact = APPLY(model, {"params": params}, *inputs)
    rough = APPLY(model.clone(dtype=jnp.bfloat16), {"params": params}, *inputs)
    assert rough.dtype == jnp.float32
    error = np.abs(exact - rough).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.05


@pytest.mark.parametrize("place", Seeds._fields)
def test_each_dropout_is_applied_in_training_only(random_case, monkeypatch, place):
    """With only its own rate and seeds, each of four dropouts changes the logits if there is a key, and only then."""
    model, params = random_case
    inputs = np.arange(16)[None] % 11, np.array([0]), np.arange(16)[None]
    rate = {"attention_dropout" if place == "weights" else "dropout": 0.5}
    noisy = model.clone(config=dataclasses.replace(model.config, **rate))
    monkeypatch.setattr(rar, "draw_seeds", lambda *args: Seeds(**{place: getattr(draw_seeds(*args), place)}))
    plain = APPLY(model, {"params": params}, *inputs)
    np.testing.assert_array_equal(APPLY(noisy, {"params": params}, *inputs), plain)
    # `APPLY` could reuse what it traced with the seeds of another place.
    dropped = jax.jit(lambda key: noisy.apply({"params": params}, *inputs, key))(jax.random.key(0))
    assert np.abs(dropped - plain).max() > 1e-3


def loop_over_blocks(model, params, examples):
    """Returns the forward pass's loop over blocks as shapes: the arrays that all blocks read, and those that it keeps.

    Kernels, which the first axes tell from activations, are left out.
    """
    batch, places = examples["visited"].shape[0], examples["visited"].shape[1] + 1
    program = jax.make_jaxpr(jax.grad(lambda p: token_losses(model, p, examples, jax.random.key(5))[0].mean()))(params)
    scan = next(each for each in program.eqns if each.primitive.name == "scan")
    read = [each.aval for each in scan.invars[: scan.params["num_consts"]]]
    kept = [each.aval for each in scan.outvars[scan.params["num_carry"] :]]
    return read, [each for each in kept if each.shape[1] == batch and places in each.shape]


@pytest.mark.parametrize(("remat", "most"), [("none", 27), ("dots", 17), ("block", 1)])
def test_what_the_backward_pass_needs(random_case, remat, most):
    """Blocks read no constant of an activation's size, and keep nothing but statistics of rows in float32.

    `most` is the size of what a block keeps, in units of B x S x D. The MLP is four times as wide.
    """
    model = random_case[0]
    config = dataclasses.replace(model.config, mlp_width=128, dropout=0.1, attention_dropout=0.1)
    model = model.clone(config=config, dtype=jnp.bfloat16, remat=remat)
    orders = np.tile(np.arange(16), (3, 1))
    params = jax.eval_shape(functools.partial(init, model))
    read, kept = loop_over_blocks(model, params, {"visited": orders, "label": orders[:, 0], "order": orders})
    activation = 3 * 17 * 32
    # The condition is read. Places, which dropout hashes, have no axis of rows.
    assert [each.shape for each in read if each.size >= activation and each.shape[0] > 1] == [(3, 17, 32)]
    sizes = {dtype: sum(each.size for each in kept if each.dtype == dtype) for dtype in (jnp.bfloat16, jnp.float32)}
    assert sizes[jnp.bfloat16] == most * 2 * activation
    assert all(each.dtype == jnp.bfloat16 or each.size < 2 * activation / 7 for each in kept)
