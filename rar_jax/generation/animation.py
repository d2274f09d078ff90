"""Images appearing token by token."""

import numpy as np

from rar_jax.data.tokenizers import Tokenizer

# An image of more tokens appears several at a time.
_MAX_STEPS = 64
_GREY = 128


def appearing(tokenizer: Tokenizer, tokens: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Decodes what is there of each image's codes at every step; patches without a code yet are grey.

    Args:
      tokenizer: what turns codes into images.
      tokens: int [N, T], in grid order.
      orders: int [N, T], the positions in the order in which they were sampled.

    Returns:
      uint8 [F, N, H, W, 3], F up to 65: all grey first, the whole images last.
    """
    count, num_tokens = tokens.shape
    known = np.linspace(0, num_tokens, min(num_tokens, _MAX_STEPS) + 1).round().astype(int)
    there = np.argsort(orders, axis=1) < known[:, None, None]
    # The decoder looks beyond a patch: what it sees there is like the last token.
    last = np.take_along_axis(tokens, orders[:, np.maximum(known - 1, 0)], axis=1).T[..., None]
    images = tokenizer.decode(np.where(there, tokens, last).reshape(-1, num_tokens))
    side = tokenizer.grid_side
    patches = there.reshape(-1, side, side).repeat(tokenizer.downsampling, 1).repeat(tokenizer.downsampling, 2)
    images = np.where(patches[..., None], images, np.uint8(_GREY))
    return images.reshape(len(known), count, *images.shape[1:])
