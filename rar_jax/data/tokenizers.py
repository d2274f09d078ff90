"""Tokenizers: what turns images into codes and back."""

from typing import Protocol

import numpy as np

from rar_jax.config import DataConfig
from rar_jax.data.digits import DigitsTokenizer


class Tokenizer(Protocol):
    """Images to codes and back.

    Attributes:
      name: as in `config.data.tokenizer`.
      grid_side: of the token grid; T = grid_side ** 2.
      codebook_size: V.
      downsampling: side in pixels of the patch that a token stands for.
    """

    name: str
    grid_side: int
    codebook_size: int
    downsampling: int

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> codes int32 [B, T]."""

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Codes int [B, T] -> uint8 [B, H, W, 3]."""


def load_tokenizer(config: DataConfig) -> Tokenizer | None:
    """The tokenizer of a config, or None where it has none."""
    return DigitsTokenizer() if config.tokenizer == "digits" else None
