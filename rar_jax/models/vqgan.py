"""The MaskGIT-VQGAN tokenizer: a convolutional encoder and decoder with a codebook between them.

It follows MaskGIT (Chang et al., 2022) and its PyTorch port. Images are NHWC in [0, 1]. Between two levels, the encoder
halves the side by average pooling, and the decoder doubles it by nearest-neighbour upsampling. With L levels, a code
represents a patch whose side is 2 ** (L - 1) pixels.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from rar_jax.models.sizes import VQGANConfig, num_groups

# By default, a TPU rounds the inputs of products to bfloat16, which would change which code is nearest.
_EXACT = jax.lax.Precision.HIGHEST
# TF32 on GPUs, as in the published code, and three passes of bfloat16 on TPUs: pixels are rounded to 8 bits.
_OF_PIXELS = jax.lax.Precision.HIGH


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers that all parts of the network share.

    Attributes:
      groups: see `sizes.num_groups`.
      dtype: compute dtype.
      precision: of the products, if the compute dtype is float32.
    """

    groups: int
    dtype: jnp.dtype
    precision: jax.lax.Precision

    def conv(self, features: int, size: int, use_bias: bool, name: str) -> nn.Conv:
        """Makes a convolution that keeps the side of an image."""
        options = {"padding": "SAME", "use_bias": use_bias, "dtype": self.dtype, "precision": self.precision}
        return nn.Conv(features, (size, size), name=name, **options)

    def norm_silu(self, x: jax.Array, name: str) -> jax.Array:
        """Applies a normalisation and SiLU."""
        groups = num_groups(self.groups, x.shape[-1])
        # Uses the two-pass variance, because E[x^2] - E[x]^2 loses digits if the mean is large.
        norm = nn.GroupNorm(groups, epsilon=1e-6, dtype=self.dtype, use_fast_variance=False, name=name)
        return nn.silu(norm(x))


class ResBlock(nn.Module):
    """Two normalised convolutions and a shortcut: [B, H, W, C] -> [B, H, W, width]."""

    layers: Layers
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.layers.conv(self.width, 3, False, "conv1")(self.layers.norm_silu(x, "norm1"))
        h = self.layers.conv(self.width, 3, False, "conv2")(self.layers.norm_silu(h, "norm2"))
        if x.shape[-1] == self.width:
            return x + h
        # The published network projects h, not x.
        return h + self.layers.conv(self.width, 1, False, "nin_shortcut")(h)


class Level(nn.Module):
    """The residual blocks of one resolution. With `upsample`, for the decoder, the side is doubled after them."""

    layers: Layers
    width: int
    num_blocks: int
    upsample: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.num_blocks):
            x = ResBlock(self.layers, self.width, name=f"block_{i}")(x)
        if self.upsample:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = self.layers.conv(self.width, 3, True, "upsample_conv")(x)
        return x


class Encoder(nn.Module):
    """Encodes images [B, H, W, 3] -> latents [B, H / f, W / f, latent_width], f = 2 ** (levels - 1)."""

    layers: Layers
    config: VQGANConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.layers.conv(self.config.width, 3, False, "conv_in")(x)
        for i, width in enumerate(self.config.level_widths):
            if i > 0:
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
            x = Level(self.layers, width, self.config.num_blocks, name=f"down_{i}")(x)
        for i in range(self.config.num_blocks):
            x = ResBlock(self.layers, x.shape[-1], name=f"mid_{i}")(x)
        x = self.layers.conv(self.config.latent_width, 1, True, "conv_out")(self.layers.norm_silu(x, "norm_out"))
        return x.astype(jnp.float32)


class Decoder(nn.Module):
    """Decodes latents [B, h, w, latent_width] -> images [B, h f, w f, 3], not clipped."""

    layers: Layers
    config: VQGANConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.layers.conv(self.config.level_widths[-1], 3, True, "conv_in")(x)
        for i in range(self.config.num_blocks):
            x = ResBlock(self.layers, x.shape[-1], name=f"mid_{i}")(x)
        for i, width in reversed(list(enumerate(self.config.level_widths))):
            x = Level(self.layers, width, self.config.num_blocks, upsample=i > 0, name=f"up_{i}")(x)
        x = self.layers.conv(3, 3, True, "conv_out")(self.layers.norm_silu(x, "norm_out"))
        return x.astype(jnp.float32)


class VQGAN(nn.Module):
    """The network of the tokenizer: an encoder, a codebook and a decoder.

    Attributes:
      config: sizes. The defaults are those of the published tokenizer for images of 256 x 256 pixels.
      dtype: compute dtype. Parameters, latents and images are float32.
    """

    config: VQGANConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        groups = self.config.groups
        self.encoder = Encoder(Layers(groups, self.dtype, _EXACT), self.config)
        self.decoder = Decoder(Layers(groups, self.dtype, _OF_PIXELS), self.config)
        self.quantize = nn.Embed(self.config.codebook_size, self.config.latent_width)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Reconstructs images float32 [B, H, W, 3] in [0, 1]. Returns the same shape and range."""
        return self.decode(self.encode(images))

    def encode(self, images: jax.Array) -> jax.Array:
        """Encodes images: float32 [B, H, W, 3] in [0, 1] -> int32 [B, h, w]."""
        return self.nearest_codes(self.encoder(images))

    def nearest_codes(self, latents: jax.Array) -> jax.Array:
        """Finds the nearest code by squared distance: latents [B, h, w, latent_width] -> int32 [B, h, w]."""
        codebook = self.quantize.embedding
        products = jnp.einsum("bhwc,vc->bhwv", latents, codebook, precision=_EXACT)
        # |z - e|^2 without |z|^2, which is the same for every code.
        return jnp.argmin(jnp.sum(codebook**2, axis=-1) - 2 * products, axis=-1).astype(jnp.int32)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Decodes codes: int32 [B, h, w] -> images float32 [B, H, W, 3], clipped to [0, 1]."""
        return jnp.clip(self.decoder(self.quantize(codes)), 0.0, 1.0)

    def decode_pixels(self, codes: jax.Array) -> jax.Array:
        """Decodes codes: int32 [B, h, w] -> images uint8 [B, H, W, 3]."""
        return jnp.rint(self.decode(codes) * 255).astype(jnp.uint8)
