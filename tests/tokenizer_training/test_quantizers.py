import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rar_jax.tokenizer_config import QuantizerConfig
from rar_jax.tokenizer_training.quantizers import (
    dead_codes,
    fsq_codebook,
    kmeans_codebook,
    quantizer_loss,
    restarted,
    straight_through,
    updated_use,
    use_scores,
)

FSQ = QuantizerConfig("fsq", levels=(3, 2), commitment=0.3)
VQ = QuantizerConfig("vq", commitment=0.3, restart_below=0.1)


def test_the_codes_of_fsq_are_a_grid():
    expected = [[-1, -1], [-1, 1], [0, -1], [0, 1], [1, -1], [1, 1]]
    np.testing.assert_array_equal(fsq_codebook((3, 2)), expected)
    assert len(np.unique(fsq_codebook((8, 8, 4, 4)), axis=0)) == 1024


@pytest.mark.parametrize("config", [FSQ, VQ])
def test_gradients_are_those_of_the_surrogate_loss(config):
    """Finite differences of the loss in which the chosen codes and the stopped values are held fixed."""
    rng = np.random.default_rng(0)
    latents, codebook = 1.5 * rng.normal(size=(5, 2)), rng.normal(size=(6, 2))
    target = rng.normal(size=(5, 2))

    def loss(latents, codebook):
        codes = jnp.argmin(jnp.sum((latents[:, None] - codebook) ** 2, axis=-1), axis=-1)
        entries = codebook[codes]
        decoded = jnp.sin(straight_through(latents, entries))
        return jnp.sum((decoded - target) ** 2) + quantizer_loss(config, latents, entries)

    codes = np.argmin(((latents[:, None] - codebook) ** 2).sum(-1), axis=-1)
    fixed_latents, fixed_entries = latents.copy(), codebook[codes]

    def surrogate(latents, codebook):
        decoded = np.sin(latents + (fixed_entries - fixed_latents))
        total = np.sum((decoded - target) ** 2)
        if config.kind == "fsq":
            return total + 0.3 * np.mean(np.maximum(np.abs(latents) - 1, 0) ** 2)
        total += np.mean((codebook[codes] - fixed_latents) ** 2)
        return total + 0.3 * np.mean((latents - fixed_entries) ** 2)

    def differences(function, values, step=1e-6):
        found = np.zeros_like(values)
        for place in np.ndindex(values.shape):
            change = np.zeros_like(values)
            change[place] = step
            found[place] = (function(values + change) - function(values - change)) / (2 * step)
        return found

    of_latents, of_codebook = jax.grad(loss, argnums=(0, 1))(jnp.float32(latents), jnp.float32(codebook))
    np.testing.assert_allclose(of_latents, differences(lambda x: surrogate(x, codebook), latents), atol=1e-4)
    np.testing.assert_allclose(of_codebook, differences(lambda x: surrogate(latents, x), codebook), atol=1e-4)
    # The codes of FSQ do not learn.
    assert np.any(of_codebook) == (config.kind == "vq")


def test_use_is_a_running_share():
    use, codes = jnp.full(4, 0.25), jnp.array([[[0, 0], [1, 2]]])
    # One batch has a weight of 1 %.
    np.testing.assert_allclose(updated_use(use, codes), [0.2525, 0.25, 0.25, 0.2475], atol=1e-6)
    for _ in range(2000):
        use = updated_use(use, codes)
    np.testing.assert_allclose(use, [0.5, 0.25, 0.25, 0], atol=1e-5)
    np.testing.assert_array_equal(dead_codes(VQ, use), [False, False, False, True])
    scores = use_scores(VQ, use)
    assert scores["live_codes"] == 0.75
    assert scores["codebook_perplexity"] == pytest.approx(2**1.5, rel=1e-4)


def test_dead_codes_move_to_latents_and_others_stay():
    codebook, ema = jnp.zeros((8, 2)), jnp.ones((8, 2))
    use = jnp.array([0.5, 0, 0.3, 0.01, 0.19, 0, 0, 0])
    latents = jax.random.normal(jax.random.key(0), (3, 2, 2, 2)) + 5
    after, (moved, moved_ema) = restarted(VQ, jax.random.key(1), use, latents, (codebook, ema))
    alive = np.array([0, 2, 4])
    dead = np.array([1, 3, 5, 6, 7])
    np.testing.assert_array_equal(moved[alive], 0)
    np.testing.assert_array_equal(moved_ema[alive], 1)
    np.testing.assert_array_equal(moved[dead], moved_ema[dead])
    known = {tuple(latent) for latent in np.asarray(latents).reshape(-1, 2)}
    assert all(tuple(code) in known for code in np.asarray(moved)[dead])
    assert after.sum() == pytest.approx(1) and not dead_codes(VQ, after).any()


def test_kmeans_finds_separate_clusters():
    centers = np.array([[0, 0], [10, 0], [0, 10]])
    latents = np.repeat(centers, 50, axis=0) + np.random.default_rng(0).normal(size=(150, 2))
    codebook = kmeans_codebook(latents, 3, seed=1)
    distances = np.linalg.norm(codebook[:, None] - centers, axis=-1)
    assert codebook.dtype == np.float32 and distances.min(axis=0).max() < 0.5
