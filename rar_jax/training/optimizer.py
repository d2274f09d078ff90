"""AdamW and its learning rate schedule, as in the paper (Table 6)."""

import re
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import optax

from rar_jax.config import OptimizerConfig
from rar_jax.tokenizer_config import TokenizerOptimizerConfig

# Paths of the parameters with weight decay. Biases, norms, embeddings, positional tables and the modulation of the head
# are not decayed.
DECAYED = re.compile(r"blocks/(attention/(qkv|proj)|mlp/(fc1|fc2)|modulation)/kernel|lm_head/kernel|cls_token")


def decay_mask(params: dict[str, Any]) -> dict[str, Any]:
    """Returns a tree like `params` that is True where weight decay applies."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return flax.traverse_util.unflatten_dict({path: bool(DECAYED.fullmatch(path)) for path in flat}, sep="/")


def learning_rate_schedule(
    config: OptimizerConfig | TokenizerOptimizerConfig, warmup_steps: int, total_steps: int
) -> Callable[[jax.Array], jax.Array]:
    """Returns the learning rate schedule: linear from 0 to the peak over the warm-up, then cosine to the end rate.

    Args:
      config: gives the peak and the end rate.
      warmup_steps: steps of the warm-up; 0 for none.
      total_steps: the step at which the end rate is reached, at least warmup_steps + 1.

    Returns:
      A function: number of an update, int32, from 0 -> learning rate. With a warm-up the first rate is 0.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=total_steps,
        end_value=config.end_learning_rate,
    )


def adamw(config: OptimizerConfig, learning_rate: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
    """Returns an optimizer that clips by global norm, then applies AdamW with decoupled weight decay on `DECAYED`.

    The learning rate scales the weight decay, as in PyTorch's AdamW.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decay_mask),
    )
