"""Editing of images: the tokens under a mask are drawn again, given all others."""

from collections.abc import Callable

import numpy as np

from rar_jax.data.tokenizers import Tokenizer
from rar_jax.errors import UserError
from rar_jax.parallel.mesh import fetch
from rar_jax.sampling.options import Options
from rar_jax.sampling.sampler import Sampler


def token_masks(masks: np.ndarray, tokenizer: Tokenizer, num_images: int, margin: int) -> np.ndarray:
    """Returns the tokens that a mask of pixels covers: a token is masked if any of its pixels is.

    Args:
      masks: bool [H, W], the same for all images, or [N, H, W].
      tokenizer: decides the grid.
      num_images: N.
      margin: rings of tokens around the mask that are masked too, because neighbouring tokens know what was under it.

    Returns:
      bool [N, T].

    Raises:
      UserError: the masks have another size than the images, or are not as many.
    """
    side, patch = tokenizer.grid_side, tokenizer.downsampling
    masks = np.asarray(masks, bool)
    if masks.shape[-2:] != (side * patch,) * 2 or masks.shape[:-2] not in ((), (num_images,)):
        raise UserError(
            f"masks of shape {masks.shape} must have the shape {(side * patch,) * 2}, or one mask for each of the "
            f"{num_images} images"
        )
    covered = np.broadcast_to(masks, (num_images, *masks.shape[-2:])).reshape(num_images, side, patch, side, patch)
    covered = covered.any(axis=(2, 4))
    for _ in range(margin):
        grown = np.pad(covered, ((0, 0), (1, 1), (1, 1)))
        # The ring around a token includes its diagonal neighbours.
        covered = np.any([grown[:, y : y + side, x : x + side] for y in range(3) for x in range(3)], axis=0)
    return covered.reshape(num_images, -1)


def edit_tokens(
    sampler: Sampler,
    tokens: np.ndarray,
    masked: np.ndarray,
    labels: np.ndarray,
    options: Options,
    *,
    seed: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """Draws the masked tokens of images again, image k as number k.

    Args:
      sampler: the model.
      tokens: int [N, T], codes in grid order.
      masked: bool [N, T].
      labels: int32 [N], classes to draw.
      options: how tokens are drawn. Known tokens come first in every order.
      seed: seed of all draws.
      batch_size: images edited at once.
      on_batch: called with n after each batch of n images.

    Returns:
      int32 [N, T], the tokens that are not masked unchanged.
    """
    batch_size, batches = sampler.batch_size(batch_size, len(tokens)), []
    for start in range(0, len(tokens), batch_size):
        numbers = np.arange(start, min(start + batch_size, len(tokens)), dtype=np.int32)
        padded = np.pad(numbers, (0, batch_size - len(numbers)), mode="edge")
        edited, _ = sampler.edit(
            labels[padded], padded, seed, options, np.asarray(tokens, np.int32)[padded], masked[padded]
        )
        batches.append(fetch(edited)[: len(numbers)])
        on_batch(len(numbers))
    return np.concatenate(batches)
