"""The PatchGAN discriminator (Isola et al., 2017), which judges patches of images."""

import flax.linen as nn
import jax

from rar_jax.models.sizes import num_groups

_SLOPE = 0.2
# The widest layer, in units of the first.
_MOST = 8


class Discriminator(nn.Module):
    """Judges overlapping patches: images [B, H, W, 3] in [0, 1] -> logits [B, h, w], larger for originals.

    It has GroupNorm, which does not depend on the other images of the batch, in place of the paper's batch
    normalisation.

    Attributes:
      width: number of channels of the first layer. Each following layer has twice as many, up to eight times.
      layers: number of layers that halve the side.
    """

    width: int
    layers: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = 2 * images - 1
        for i in range(self.layers + 1):
            channels = self.width * min(2**i, _MOST)
            stride = 2 if i < self.layers else 1
            x = nn.Conv(channels, (4, 4), (stride, stride), use_bias=i == 0, name=f"conv_{i}")(x)
            if i > 0:
                x = nn.GroupNorm(num_groups(0, channels), name=f"norm_{i}")(x)
            x = nn.leaky_relu(x, _SLOPE)
        return nn.Conv(1, (4, 4), name="conv_out")(x)[..., 0]
