"""Tokenizers: what turns images into codes and back."""

from typing import Protocol

import numpy as np

from rar_jax.config import Config
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


def load_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer of a config, or None where it has none.

    Raises:
      ValueError: the tokenizer does not fit the model; both values are given.
    """
    if config.data.tokenizer == "none":
        return None
    tokenizer = DigitsTokenizer()
    for field, ours, theirs in (
        ("model.grid_side", config.model.grid_side, tokenizer.grid_side),
        ("model.codebook_size", config.model.codebook_size, tokenizer.codebook_size),
        ("data.downsampling", config.data.downsampling, tokenizer.downsampling),
    ):
        if ours != theirs:
            raise ValueError(
                f"config.{field}={ours}, and config.data.tokenizer={tokenizer.name} has {theirs}: "
                "set the one or choose another tokenizer, such as none"
            )
    return tokenizer
