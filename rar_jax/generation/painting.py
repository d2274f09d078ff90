"""Images that can be seen while they are drawn."""

import dataclasses

import numpy as np

from rar_jax.data.tokenizers import Tokenizer

_GREY = 128


def decode_known(tokenizer: Tokenizer, tokens: np.ndarray, known: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Decodes images of which some codes are known. The other patches are grey.

    Args:
      tokenizer: the tokenizer that decodes the codes.
      tokens: int [N, T], codes in grid order.
      known: bool [N, T].
      orders: int [N, T], each image's positions in the order visited, the known ones first.

    Returns:
      uint8 [N, H, W, 3].
    """
    # The decoder also sees the codes around a patch. The missing ones are set to the code that was drawn last.
    place = np.maximum(known.sum(axis=1, keepdims=True) - 1, 0)
    last = np.take_along_axis(tokens, np.take_along_axis(orders, place, axis=1), axis=1)
    images, side = tokenizer.decode(np.where(known, tokens, last)), tokenizer.grid_side
    patches = known.reshape(-1, side, side).repeat(tokenizer.downsampling, 1).repeat(tokenizer.downsampling, 2)
    return np.where(patches[..., None], images, np.uint8(_GREY))


@dataclasses.dataclass(frozen=True)
class Painting:
    """Images that are being drawn.

    Attributes:
      tokens: int32 [N, T], codes in row-major grid order. Those that are not known have no meaning.
      known: bool [N, T], the tokens that are drawn, or were known from the beginning.
      orders: int32 [N, T], each image's positions in the order visited. The known ones come first.
    """

    tokens: np.ndarray
    known: np.ndarray
    orders: np.ndarray
    _tokenizer: Tokenizer
    _pasted: tuple[np.ndarray, np.ndarray] | None

    @property
    def done(self) -> bool:
        """Whether all tokens are known."""
        return bool(self.known.all())

    def images(self) -> np.ndarray:
        """Decodes what is known: uint8 [N, H, W, 3], grey where nothing is known."""
        drawn = decode_known(self._tokenizer, self.tokens, self.known, self.orders)
        if self._pasted is None:
            return drawn
        images, masks = self._pasted
        return np.where(masks[..., None], drawn, images)
