"""Makes animations of images that appear token by token."""

import numpy as np

from rar_jax.data.tokenizers import Tokenizer

# If an image has more tokens, each frame adds several.
_MAX_STEPS = 64
_GREY = 128


def appearing(tokenizer: Tokenizer, tokens: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Decodes images at every step of their sampling. Patches that have no code yet are grey.

    Args:
      tokenizer: the tokenizer that decodes the codes.
      tokens: int [N, T], codes in grid order.
      orders: int [N, T], each image's positions in the order in which they were sampled.

    Returns:
      uint8 [F, N, H, W, 3], F at most 65 frames. The first is all grey, and the last shows the whole images.
    """
    count, num_tokens = tokens.shape
    known = np.linspace(0, num_tokens, min(num_tokens, _MAX_STEPS) + 1).round().astype(int)
    there = np.argsort(orders, axis=1) < known[:, None, None]
    # The decoder also sees the codes around a patch. The missing ones are set to the code that was sampled last.
    last = np.take_along_axis(tokens, orders[:, np.maximum(known - 1, 0)], axis=1).T[..., None]
    images = tokenizer.decode(np.where(there, tokens, last).reshape(-1, num_tokens))
    side = tokenizer.grid_side
    patches = there.reshape(-1, side, side).repeat(tokenizer.downsampling, 1).repeat(tokenizer.downsampling, 2)
    images = np.where(patches[..., None], images, np.uint8(_GREY))
    return images.reshape(len(known), count, *images.shape[1:])
