"""The config section of the network: its sizes and dropout rates. This module imports no network."""

import dataclasses

from rar_jax.fields import setting

# Two tokens precede the image tokens: cls, and the class embedding.
PREFIX = 2
# Names of the rematerialisation policies, which are in `models.rar`.
REMAT = ("none", "block", "dots")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network (Table 1 of the paper). The defaults are RAR-B."""

    grid_side: int = setting(16, "Side of the token grid; an image has T = grid_side**2 tokens.", at_least=1)
    codebook_size: int = setting(1024, "V, the number of codes.", at_least=1)
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
