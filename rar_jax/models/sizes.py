"""The config sections of the networks: their sizes and dropout rates. This module imports no network."""

import dataclasses

from rar_jax.fields import setting

# Two tokens precede the image tokens: cls, and the class embedding.
PREFIX = 2
# Token records hold codes as uint16.
MAX_CODEBOOK_SIZE = 2**16
# Names of the rematerialisation policies, which are in `models.rar`.
REMAT = ("none", "block", "dots")
# Names of the implementations of attention in training: `models.attention` and `models.pallas_attention`.
ATTENTION = ("xla", "pallas")
# Groups of every normalisation in the published tokenizer.
PUBLISHED_GROUPS = 32


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network (Table 1 of the paper). The defaults are RAR-B."""

    grid_side: int = setting(16, "Side of the token grid; an image has T = grid_side**2 tokens.", at_least=1)
    codebook_size: int = setting(1024, "V, the number of codes.", at_least=1, at_most=MAX_CODEBOOK_SIZE)
    num_classes: int = setting(1000, "C, the number of classes. Class C is the null class.", at_least=1)
    width: int = setting(768, "D, the width of the transformer.", at_least=1)
    depth: int = setting(24, "L, the number of blocks.", at_least=1)
    num_heads: int = setting(16, "H, the number of attention heads.", at_least=1)
    mlp_width: int = setting(3072, "Hidden width of the MLP.", at_least=1)
    dropout: float = setting(
        0.1, "Dropout rate after the attention projection, after GELU and after the MLP.", at_least=0, below=1
    )
    attention_dropout: float = setting(0.1, "Dropout rate on the attention probabilities.", at_least=0, below=1)
    target_aware: bool = setting(True, "Add target-aware positional embeddings (Figure 3 of the paper).")

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens of an image."""
        return self.grid_side**2

    @property
    def null_class(self) -> int:
        """The label that means "no class given"."""
        return self.num_classes


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
    """The network of a tokenizer (`models.vqgan.VQGAN`). The defaults are the published f16 tokenizer."""

    width: int = setting(128, "Number of channels at the full resolution.", at_least=1)
    multipliers: tuple = setting((1, 1, 2, 2, 4), "Width of each level in units of `width`, the finest level first.")
    num_blocks: int = setting(2, "Residual blocks of a level, and of the middle.", at_least=1)
    latent_width: int = setting(
        256, "Length of a code's vector. For FSQ, the number of entries of `config.quantizer.levels`.", at_least=1
    )
    codebook_size: int = setting(
        1024, "V, the number of codes. For FSQ, the product of the levels.", at_least=2, at_most=MAX_CODEBOOK_SIZE
    )
    groups: int = setting(
        0, "Groups of every GroupNorm. 0: 32 from 128 channels on, and one for every 16 channels below.", at_least=0
    )

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Number of channels of each level, the finest one first."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def downsampling(self) -> int:
        """The side in pixels of the patch that a code represents."""
        return 2 ** (len(self.multipliers) - 1)


def num_groups(groups: int, channels: int) -> int:
    """Returns the number of groups of a GroupNorm with the given number of channels.

    Groups of few channels take away the mean of each channel, and with it the colour of the whole image. The published
    tokenizer has 32 groups, which are of four channels at least. A narrower network needs fewer groups.

    Args:
      groups: the number, or 0 for 32 from 128 channels on and one for every 16 channels below.
      channels: number of channels.
    """
    if groups:
        return groups
    return PUBLISHED_GROUPS if channels >= 128 else max(1, channels // 16)
