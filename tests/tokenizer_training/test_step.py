import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rar_jax.checkpoints.weights import Weights
from rar_jax.parallel.mesh import make_mesh
from rar_jax.tokenizer_training.program import make_program

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)


def made(config):
    """Returns the program of a config, its initial state and its compiled step."""
    program = make_program(config)
    return program, jax.jit(program.init)(), jax.jit(program.step)


@pytest.fixture(scope="module")
def plain(tiny_tokenizer):
    return made(tiny_tokenizer(optimizer={"warmup_steps": 0}, train={"ema_decay": 0.2}))


@pytest.fixture(scope="module")
def adversarial(tiny_tokenizer):
    loss = {"adversarial": 0.7, "adversarial_start": 2}
    return made(tiny_tokenizer(loss=loss, optimizer={"warmup_steps": 0}))


def test_the_discriminator_is_off_until_its_start_and_then_learns(plain, adversarial):
    (_, state, step), (_, other, other_step) = adversarial, plain
    initial = state.discriminator.params
    for number in range(3):
        (state, metrics), (other, _) = step(state, {"image": IMAGES}), other_step(other, {"image": IMAGES})
        on = number >= 2
        assert (metrics["adversarial_weight"] > 0) == on and bool(metrics["discriminator"]) == on
        same = jax.tree.map(np.array_equal, state.discriminator.params, initial)
        assert jax.tree.all(same) == (not on)
        # Before, the run is the same as one without a discriminator.
        close = jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), state.params, other.params)
        assert jax.tree.all(close) == (not on)
    losses = []
    for _ in range(4):
        # The tokenizer stays, so that the discriminator sees the same reconstructions.
        after, metrics = step(state, {"image": IMAGES})
        state = state.replace(discriminator=after.discriminator)
        losses.append(float(metrics["discriminator"]))
    assert losses[-1] < 0.9 * losses[0]


def test_the_discriminator_is_balanced_at_the_last_layer(adversarial):
    """The weight is the quotient of the norms of two gradients, which are computed here one after the other.

    The last layer moves against their weighted sum. The first update of Adam has the sign of the gradient.
    """
    program, state, step = adversarial
    settings, images = program.settings, jnp.float32(IMAGES) / 255

    def decoded(kernel):
        last = state.params["decoder"] | {"conv_out": state.params["decoder"]["conv_out"] | {"kernel": kernel}}
        params = state.params | {"decoder": last}
        codes = settings.model.apply({"params": params}, images, method="encode")
        return settings.model.apply({"params": params}, codes, method=lambda m, codes: m.decoder(m.quantize(codes)))

    def reconstruction(kernel):
        errors = decoded(kernel) - images
        return jnp.abs(errors).mean() + jnp.square(errors).mean()

    def judgement(kernel):
        return -settings.discriminator.apply({"params": state.discriminator.params}, decoded(kernel)).mean()

    kernel = state.params["decoder"]["conv_out"]["kernel"]
    gradients = [np.asarray(jax.grad(loss)(kernel)) for loss in (reconstruction, judgement)]
    norms = [np.linalg.norm(gradient) for gradient in gradients]
    weight = 0.7 * norms[0] / (norms[1] + 1e-4)
    after, metrics = step(state.replace(step=jnp.int32(2)), {"image": IMAGES})
    assert metrics["adversarial_weight"] == pytest.approx(weight, rel=1e-3)
    total, moved = gradients[0] + weight * gradients[1], after.params["decoder"]["conv_out"]["kernel"] - kernel
    clear = np.abs(total) > 0.01 * np.abs(total).max()
    np.testing.assert_array_equal(np.sign(moved[clear]), -np.sign(total[clear]))


class Layers(nn.Module):
    """A small network whose layers have the names that the perceptual distance compares."""

    @nn.compact
    def __call__(self, x):
        for name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e"):
            x = nn.Conv(4, (3, 3), name=name)(x)
        return x


def distance_in_numpy(weights, images, originals):
    """Returns the perceptual distance of two batches by the network `Layers`, from its captured outputs."""
    units = []
    for batch in (images, originals):
        _, captured = Layers().apply(
            {"params": weights}, 255 * batch, capture_intermediates=True, mutable="intermediates"
        )
        layers = [np.asarray(captured["intermediates"][name]["__call__"][0]) for name in weights]
        units.append([layer / np.linalg.norm(layer, axis=-1, keepdims=True) for layer in layers])
    return np.mean([((a - b) ** 2).sum(axis=-1).mean() for a, b in zip(*units, strict=True)])


def test_the_weights_of_the_perceptual_distance_are_an_argument(tiny_tokenizer):
    """The program does not depend on their values. The distance does, and is the one that NumPy computes."""
    mesh, images = make_mesh((1,), jax.devices()[:1]), jnp.float32(IMAGES) / 255
    losses, texts = [], []
    for seed in range(2):
        weights = jax.tree.map(np.asarray, Layers().init(jax.random.key(seed), images)["params"])
        program = make_program(tiny_tokenizer(), Weights("inception", Layers(), weights, ""))
        state, batch = jax.jit(program.init)(), {"image": IMAGES}
        texts.append(program.lower_step(mesh, state, batch).as_text())
        codes = program.settings.model.apply({"params": state.params}, images, method="encode")
        decoded = program.settings.model.apply(
            {"params": state.params}, codes, method=lambda m, codes: m.decoder(m.quantize(codes))
        )
        _, metrics = program.compile_step(mesh, state, batch)(state, batch)
        losses.append(float(metrics["perceptual"]))
        assert losses[-1] == pytest.approx(distance_in_numpy(weights, decoded, images), rel=1e-3)
    assert texts[0] == texts[1] and losses[0] != pytest.approx(losses[1], rel=0.01)


def test_the_grid_of_fsq_stays_and_the_average_follows(plain):
    """The average is shorter at first: at update n, from 0, its decay is at most (1 + n) / (10 + n)."""
    _, state, step = plain
    before, average = state, state.ema["decoder"]["conv_in"]["kernel"]
    for decay in (1 / 10, 2 / 11, 0.2):
        state, metrics = step(state, {"image": IMAGES})
        kernel = state.params["decoder"]["conv_in"]["kernel"]
        assert not np.allclose(kernel, average, atol=1e-4)
        average = decay * average + (1 - decay) * kernel
        np.testing.assert_allclose(state.ema["decoder"]["conv_in"]["kernel"], average, atol=1e-6)
    assert metrics["skipped"] == 0 and {"loss", "l1", "l2", "quantizer", "codebook_perplexity"} <= metrics.keys()
    for params in (state.params, state.ema):
        np.testing.assert_array_equal(params["quantize"]["embedding"], before.params["quantize"]["embedding"])
    broken = state.replace(params=jax.tree.map(lambda x: x * jnp.inf, state.params))
    after, metrics = step(broken, {"image": IMAGES})
    assert metrics["skipped"] == 1 and after.step == 4
    jax.tree.map(np.testing.assert_array_equal, after.ema, state.ema)


def test_dead_codes_come_back(tiny_tokenizer):
    """All codes but one are far from every latent, until the restart at step 5."""
    config = tiny_tokenizer(
        quantizer={"kind": "vq", "restart_every": 5, "restart_below": 0.5},
        optimizer={"learning_rate": 1e-3, "warmup_steps": 0},
    )
    program, state, step = made(config)
    codebook = jnp.full_like(state.params["quantize"]["embedding"], 1e3).at[0].set(0.0)
    state = state.replace(
        params=state.params | {"quantize": {"embedding": codebook}}, use=jnp.zeros_like(state.use).at[0].set(1.0)
    )
    used = []
    for _ in range(6):
        state, _ = step(state, {"image": IMAGES})
        codes = program.settings.model.apply({"params": state.params}, jnp.float32(IMAGES) / 255, method="encode")
        used.append(len(np.unique(codes)))
    assert used[:4] == [1] * 4 and min(used[4:]) >= 8
