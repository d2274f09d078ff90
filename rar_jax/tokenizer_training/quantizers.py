"""Quantisers: how the gradient passes from codes to latents, and how the codebook changes.

Both kinds choose the nearest code by squared distance, so that what comes out is an ordinary codebook [V, d].

- FSQ: the codes are the points of a fixed grid in [-1, 1]^d, as in finite scalar quantization (Mentzer et al., 2023),
  but with latents that are clipped rather than squashed. It has no state.
- VQ: the codes are learned (van den Oord et al., 2017). Without k-means at the start and restarts of dead codes, most
  codes are never used.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import KMeans

from rar_jax.tokenizer_config import QuantizerConfig

# Decay of the running use of each code: a mean over about a hundred steps.
USE_DECAY = 0.99
_KMEANS_ITERATIONS = 20


def fsq_codebook(levels: tuple[int, ...]) -> np.ndarray:
    """Returns the codes of FSQ, all combinations of evenly spaced values from -1 to 1: float32 [V, d].

    Args:
      levels: the number of values of each of the d entries; V is their product. The last entry varies fastest.
    """
    axes = [np.linspace(-1, 1, level, dtype=np.float32) for level in levels]
    return np.array(list(itertools.product(*axes)), np.float32)


def kmeans_codebook(latents: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Returns the means of clusters of latents [N, d], N at least V: float32 [V, d]."""
    clusters = KMeans(size, init="random", n_init=1, max_iter=_KMEANS_ITERATIONS, random_state=seed)
    return clusters.fit(latents).cluster_centers_.astype(np.float32)


def straight_through(latents: jax.Array, entries: jax.Array) -> jax.Array:
    """Returns the codes' vectors, whose gradient passes to the latents unchanged: two [B, h, w, d] -> [B, h, w, d]."""
    return latents + jax.lax.stop_gradient(entries - latents)


def quantizer_loss(config: QuantizerConfig, latents: jax.Array, entries: jax.Array) -> jax.Array:
    """Computes the quantiser's own loss.

    For FSQ, it is the mean square of what is beyond the grid, times the commitment weight. For VQ, it moves codes
    towards latents, and latents towards codes by the commitment weight.

    Args:
      config: the quantiser.
      latents: [B, h, w, d], the encoder's outputs.
      entries: [B, h, w, d], the vectors of the nearest codes.

    Returns:
      float32 [].
    """
    if config.kind == "fsq":
        return config.commitment * jnp.mean(jnp.maximum(jnp.abs(latents) - 1, 0) ** 2)
    codebook = jnp.mean((entries - jax.lax.stop_gradient(latents)) ** 2)
    return codebook + config.commitment * jnp.mean((latents - jax.lax.stop_gradient(entries)) ** 2)


def updated_use(use: jax.Array, codes: jax.Array) -> jax.Array:
    """Adds a batch of codes to the running use.

    Args:
      use: float32 [V], the share of each code.
      codes: int32 [B, h, w].

    Returns:
      float32 [V]; its sum stays 1.
    """
    counts = jnp.zeros_like(use).at[codes.ravel()].add(1.0)
    return USE_DECAY * use + (1 - USE_DECAY) * counts / codes.size


def dead_codes(config: QuantizerConfig, use: jax.Array) -> jax.Array:
    """Returns bool [V], whether each code's running use is too small."""
    return use * len(use) < config.restart_below


def use_scores(config: QuantizerConfig, use: jax.Array) -> dict[str, jax.Array]:
    """Returns live_codes, the share of codes that are not dead, and codebook_perplexity, exp(entropy)."""
    entropy = -jnp.sum(jax.scipy.special.xlogy(use, use))
    return {"live_codes": 1 - dead_codes(config, use).mean(), "codebook_perplexity": jnp.exp(entropy)}


def restarted(
    config: QuantizerConfig, key: jax.Array, use: jax.Array, latents: jax.Array, codebooks: tuple[jax.Array, ...]
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Moves dead codes to latents that are drawn at random.

    Args:
      config: the quantiser.
      key: key of the draw.
      use: float32 [V], the running use.
      latents: [B, h, w, d], latents of a batch.
      codebooks: codebooks [V, d] that change alike, such as the learned one and its moving average.

    Returns:
      The running use, in which a restarted code counts as used as often as the mean; and the codebooks.
    """
    flat = latents.reshape(-1, latents.shape[-1])
    dead = dead_codes(config, use)
    drawn = flat[jax.random.randint(key, use.shape, 0, len(flat))]
    use = jnp.where(dead, 1 / len(use), use)
    return use / use.sum(), tuple(jnp.where(dead[:, None], drawn, codebook) for codebook in codebooks)
