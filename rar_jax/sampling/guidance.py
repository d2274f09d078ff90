"""Classifier-free guidance with a weight that changes along the sequence."""

import jax
import numpy as np

GUIDANCE_SCHEDULES = ("pow_cosine", "cosine", "linear", "constant", "none")


def guidance_weights(schedule: str, num_tokens: int, scale: float, power: float) -> np.ndarray | None:
    """Returns the guidance weight w_t of each token t. With scale s, the schedules are:

      pow_cosine: 1 + (s - 1) (1 - cos(pi (t / T)^p)) / 2, the schedule of the published RAR sampler
      cosine:     the same with p = 1
      linear:     1 + (s - 1) t / T
      constant:   s

    All but `constant` start at 1, which is no guidance, and approach s. The schedule `none` has no guidance at all.

    Args:
      schedule: one of `GUIDANCE_SCHEDULES`.
      num_tokens: T.
      scale: s, at least 0.
      power: p, above 0. A larger power delays guidance. Only pow_cosine uses it.

    Returns:
      float32 [T], or None if every weight is 1 and no unconditional logits are needed.
    """
    if schedule == "none" or scale == 1:
        return None
    t = np.arange(num_tokens) / num_tokens
    share = {
        "pow_cosine": lambda: (1 - np.cos(np.pi * t**power)) / 2,
        "cosine": lambda: (1 - np.cos(np.pi * t)) / 2,
        "linear": lambda: t,
        "constant": lambda: np.ones(num_tokens),
    }[schedule]()
    return (1 + (scale - 1) * share).astype(np.float32)


def guide(conditional: jax.Array, unconditional: jax.Array, weight: jax.Array) -> jax.Array:
    """Moves logits [..., V] away from the unconditional ones: u + (c - u) w."""
    return unconditional + (conditional - unconditional) * weight
