"""The FID Inception network, whose features of images give FID, sFID, precision, recall and the Inception Score.

It is Inception v3 (Szegedy et al., 2016, "Rethinking the Inception Architecture for Computer Vision") as in
TensorFlow's graph of 2015-12-05, which FID (Heusel et al., 2017) and the ADM evaluator use, and in its PyTorch port
pt_inception-2015-12-05. It differs from other Inception v3 networks in three ways: it has 1,008 classes, average
pooling does not count the padding, and the last block has a max-pool. Modules have the published names. Images are
NHWC.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# Published scores use float32 products. By default, a TPU rounds their inputs to bfloat16.
_PRECISION = jax.lax.Precision.HIGHEST
_SIDE = 299
_NUM_LOGITS = 1008
# sFID (Nash et al., 2021) uses this many of the 768 channels of Mixed_6d.
_SPATIAL_CHANNELS = 7


class InceptionFeatures(NamedTuple):
    """The outputs of the network that evaluations use, float32.

    Attributes:
      pool: [B, 2048], the average over the positions of the last block, for FID, precision and recall.
      spatial: [B, 17, 17, 7], the first channels of Mixed_6d.branch1x1, for sFID.
      logits_unbiased: [B, 1008], logits without the bias of the last layer, for the Inception Score.
    """

    pool: jax.Array
    spatial: jax.Array
    logits_unbiased: jax.Array


def _resize_matrix(size: int, new_size: int) -> np.ndarray:
    """Returns [new_size, size], the weights of linear interpolation at i * size / new_size, as in TensorFlow 1."""
    source = np.arange(new_size) * size / new_size
    lower = np.floor(source).astype(int)
    fraction = source - lower
    matrix = np.zeros((new_size, size), np.float32)
    matrix[np.arange(new_size), lower] = 1 - fraction
    # Beyond the border, the last pixel is repeated.
    matrix[np.arange(new_size), np.minimum(lower + 1, size - 1)] += fraction
    return matrix


def resize_bilinear(images: jax.Array, side: int) -> jax.Array:
    """Resizes images to squares, as TensorFlow 1's `resize_bilinear` does.

    It uses no half-pixel centres, no aligned corners, no antialiasing and no rounding.

    Args:
      images: uint8 or float32 [B, H, W, C].
      side: new height and width in pixels.

    Returns:
      float32 [B, side, side, C].
    """
    rows, columns = (_resize_matrix(size, side) for size in images.shape[1:3])
    images = jnp.einsum("Hh,bhwc->bHwc", rows, images.astype(jnp.float32), precision=_PRECISION)
    return jnp.einsum("Ww,bHwc->bHWc", columns, images, precision=_PRECISION)


class BatchNorm(nn.Module):
    """Batch normalisation with the statistics of the training set: [..., C] -> [..., C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, x.shape[-1:]
        mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
        scale = self.param("scale", ones, shape) * jax.lax.rsqrt(var + 1e-3)
        return x * scale + (self.param("bias", zeros, shape) - mean * scale)


def _pointwise(x: jax.Array, kernel: jax.Array, *_, precision, **__) -> jax.Array:
    """Computes a 1 x 1 convolution of stride 1: [B, H, W, C], [1, 1, C, F] -> [B, H, W, F].

    It is a matrix product, which on a CPU is up to twice as fast as XLA's convolution.
    """
    return jnp.einsum("bhwc,cf->bhwf", x, kernel[0, 0], precision=precision)


class ConvNormRelu(nn.Module):
    """A convolution without bias, batch normalisation and ReLU: [B, H, W, C] -> [B, H', W', features].

    Attributes:
      features: number of output channels.
      size: height and width of the kernel.
      stride: stride in both directions.
      padding: SAME or VALID.
    """

    features: int
    size: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = {"kernel_size": self.size, "strides": self.stride, "padding": self.padding}
        if self.size == (1, 1):
            shape["conv_general_dilated"] = _pointwise
        x = nn.Conv(self.features, **shape, use_bias=False, precision=_PRECISION, name="conv")(x)
        return nn.relu(BatchNorm(name="bn")(x))


def _branch(x: jax.Array, name: str, *convs: tuple[int, int, int], halve: bool = False) -> jax.Array:
    """Applies convolutions in sequence, each (features, height, width). With `halve`, the last has stride 2."""
    for i, (features, *size) in enumerate(convs, 1):
        # The published names are numbered from 1 if a branch has several convolutions.
        numbered = name if len(convs) == 1 else f"{name}_{i}"
        last = (2, "VALID") if halve and i == len(convs) else ()
        x = ConvNormRelu(features, tuple(size), *last, name=numbered)(x)
    return x


def _avg_pool(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)


def _max_pool(x: jax.Array, stride: int = 2, padding: str = "VALID") -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(stride, stride), padding=padding)


def _join(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


class InceptionA(nn.Module):
    """The block of the first resolution: [B, 35, 35, C] -> [B, 35, 35, 224 + pool_features]."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _join(
            _branch(x, "branch1x1", (64, 1, 1)),
            _branch(x, "branch5x5", (48, 1, 1), (64, 5, 5)),
            _branch(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
            _branch(_avg_pool(x), "branch_pool", (self.pool_features, 1, 1)),
        )


class InceptionB(nn.Module):
    """The block that halves the side first: [B, 35, 35, C] -> [B, 17, 17, 480 + C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _join(
            _branch(x, "branch3x3", (384, 3, 3), halve=True),
            _branch(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3), halve=True),
            _max_pool(x),
        )


class InceptionC(nn.Module):
    """The block of the second resolution: [B, 17, 17, C] -> [B, 17, 17, 768].

    It factors 7 x 7 convolutions into 1 x 7 and 7 x 1 convolutions.

    Attributes:
      width: number of channels between these convolutions.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n = self.width
        return _join(
            _branch(x, "branch1x1", (192, 1, 1)),
            _branch(x, "branch7x7", (n, 1, 1), (n, 1, 7), (192, 7, 1)),
            _branch(x, "branch7x7dbl", (n, 1, 1), (n, 7, 1), (n, 1, 7), (n, 7, 1), (192, 1, 7)),
            _branch(_avg_pool(x), "branch_pool", (192, 1, 1)),
        )


class InceptionD(nn.Module):
    """The block that halves the side again: [B, 17, 17, C] -> [B, 8, 8, 512 + C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _join(
            _branch(x, "branch3x3", (192, 1, 1), (320, 3, 3), halve=True),
            _branch(x, "branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3), halve=True),
            _max_pool(x),
        )


class InceptionE(nn.Module):
    """The block of the third resolution: [B, 8, 8, C] -> [B, 8, 8, 2048].

    It replaces 3 x 3 convolutions by parallel 1 x 3 and 3 x 1 convolutions.

    Attributes:
      max_pool: whether the pooling branch takes the maximum, as in the last block, instead of the average.
    """

    max_pool: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = _branch(x, "branch3x3_1", (384, 1, 1))
        double = _branch(x, "branch3x3dbl", (448, 1, 1), (384, 3, 3))
        pooled = _max_pool(x, 1, "SAME") if self.max_pool else _avg_pool(x)
        return _join(
            _branch(x, "branch1x1", (320, 1, 1)),
            _branch(single, "branch3x3_2a", (384, 1, 3)),
            _branch(single, "branch3x3_2b", (384, 3, 1)),
            _branch(double, "branch3x3dbl_3a", (384, 1, 3)),
            _branch(double, "branch3x3dbl_3b", (384, 3, 1)),
            _branch(pooled, "branch_pool", (192, 1, 1)),
        )


class InceptionV3(nn.Module):
    """The FID Inception network. Scores are comparable only if they use its published weights."""

    @nn.compact
    def __call__(self, images: jax.Array) -> InceptionFeatures:
        """Computes the features of images uint8 or float32 [B, H, W, 3] in [0, 255], of any size."""
        x = (resize_bilinear(images, _SIDE) - 128) / 128
        x = ConvNormRelu(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = ConvNormRelu(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = ConvNormRelu(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = _max_pool(x)
        x = ConvNormRelu(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = ConvNormRelu(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = _max_pool(x)
        x = InceptionA(32, name="Mixed_5b")(x)
        x = InceptionA(64, name="Mixed_5c")(x)
        x = InceptionA(64, name="Mixed_5d")(x)
        x = InceptionB(name="Mixed_6a")(x)
        x = InceptionC(128, name="Mixed_6b")(x)
        x = InceptionC(160, name="Mixed_6c")(x)
        x = InceptionC(160, name="Mixed_6d")(x)
        # branch1x1 has the first channels of the block.
        spatial = x[..., :_SPATIAL_CHANNELS]
        x = InceptionC(192, name="Mixed_6e")(x)
        x = InceptionD(name="Mixed_7a")(x)
        x = InceptionE(name="Mixed_7b")(x)
        x = InceptionE(max_pool=True, name="Mixed_7c")(x)
        pool = x.mean(axis=(1, 2))
        logits = nn.Dense(_NUM_LOGITS, use_bias=False, precision=_PRECISION, name="fc")(pool)
        return InceptionFeatures(pool, spatial, logits)
