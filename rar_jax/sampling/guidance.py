"""Classifier-free guidance with a weight that grows along the sequence."""

import jax
import numpy as np


def pow_cosine_weights(num_tokens: int, scale: float, power: float) -> np.ndarray:
    """The guidance weight at each step: w_t = 1 + (s - 1) (1 - cos(pi (t / T)^p)) / 2.

    It starts at 1 (no guidance) and nears `scale` at the end. Matches the pow-cosine schedule of the published RAR
    sampler.

    Args:
      num_tokens: T.
      scale: s; 1 is no guidance.
      power: p, above 0; larger ones start later.

    Returns:
      float32 [T].

    Raises:
      ValueError: power is not positive.
    """
    if not power > 0:
        raise ValueError(f"guidance_power {power} must be above 0")
    t = np.arange(num_tokens) / num_tokens
    return (1 + (scale - 1) * (1 - np.cos(np.pi * t**power)) / 2).astype(np.float32)


def guide(conditional: jax.Array, unconditional: jax.Array, weight: jax.Array) -> jax.Array:
    """Moves logits [..., V] from the unconditional ones past the conditional ones: u + (c - u) w."""
    return unconditional + (conditional - unconditional) * weight
