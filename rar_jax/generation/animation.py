"""Pictures of images that appear token by token."""

import numpy as np

from rar_jax.data.tokenizers import Tokenizer

# Most steps of an animation; an image with more tokens gains several tokens per step.
_MAX_STEPS = 64
_GREY = 128


def appearing(tokenizer: Tokenizer, tokens: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Decodes images from the tokens sampled so far, step by step; patches without a token are grey.

    Args:
      tokenizer: decodes tokens to images.
      tokens: int [N, T], the tokens in grid order.
      orders: int [N, T], the grid positions in the order they were sampled in.

    Returns:
      uint8 [F, N, H, W, 3], F frames, at most 65; the first is grey and the last has the complete images.
    """
    count, num_tokens = tokens.shape
    known = np.linspace(0, num_tokens, min(num_tokens, _MAX_STEPS) + 1).round().astype(int)
    there = np.argsort(orders, axis=1) < known[:, None, None]
    # The decoder also reads neighbouring patches: those without a token get the token sampled last.
    last = np.take_along_axis(tokens, orders[:, np.maximum(known - 1, 0)], axis=1).T[..., None]
    images = tokenizer.decode(np.where(there, tokens, last).reshape(-1, num_tokens))
    side = tokenizer.grid_side
    patches = there.reshape(-1, side, side).repeat(tokenizer.downsampling, 1).repeat(tokenizer.downsampling, 2)
    images = np.where(patches[..., None], images, np.uint8(_GREY))
    return images.reshape(len(known), count, *images.shape[1:])
