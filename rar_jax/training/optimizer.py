"""AdamW as the paper uses it (Table 6): warm-up and cosine, decay on the kernels of the blocks and of the head."""

import re
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import optax

# The parameters that decay, by path. Biases, norms, embeddings, positional tables and the head's modulation do not.
DECAYED = re.compile(r"blocks/(attention/(qkv|proj)|mlp/(fc1|fc2)|modulation)/kernel|lm_head/kernel|cls_token")


def decay_mask(params: dict[str, Any]) -> dict[str, Any]:
    """A tree like params, True where weight decay applies."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return flax.traverse_util.unflatten_dict({path: bool(DECAYED.fullmatch(path)) for path in flat}, sep="/")


def learning_rate_schedule(
    peak: float, end: float, warmup_steps: int, total_steps: int
) -> Callable[[jax.Array], jax.Array]:
    """Linear from 0 to `peak` over the warm-up, then cosine to `end` at the last step.

    Args:
      peak: the highest rate. end: the rate at `total_steps`.
      warmup_steps: may be 0. total_steps: at least warmup_steps + 1.

    Returns:
      step (int32, from 0) -> rate; update n uses the rate at n, so that with a warm-up the first rate is 0.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else peak,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=total_steps,
        end_value=end,
    )


def adamw(
    learning_rate: Callable[[jax.Array], jax.Array],
    *,
    b1: float = 0.9,
    b2: float = 0.96,
    eps: float = 1e-8,
    weight_decay: float = 0.03,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW with decoupled decay on `DECAYED` (PyTorch's AdamW: decay times the rate)."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask),
    )
