"""LayerNorm whose backward pass needs its input and two numbers for each row."""

import flax.linen as nn
import jax
import jax.numpy as jnp

EPSILON = 1e-6


def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean m and r = 1 / sqrt(variance + epsilon) over the last axis of x [..., D]: float32 [..., 1]."""
    x = x.astype(jnp.float32)
    mean, mean_square = (each.mean(axis=-1, keepdims=True) for each in (x, x * x))
    # Rounding must not make the variance negative.
    variance = jnp.maximum(0.0, mean_square - mean * mean)
    return mean, jax.lax.rsqrt(variance + EPSILON)


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Computes n * scale + bias with n = (x - m) r (Ba et al., 2016, "Layer Normalization").

    m is the mean and r = 1 / sqrt(variance + epsilon), both over the last axis. With g = dy * scale, the gradient of x
    is r (g - mean(g) - n mean(g n)). The backward pass computes n again from x, m and r. JAX's own derivative would
    keep several float32 arrays of the size of x instead.

    Args:
      x: [..., D].
      scale: [D].
      bias: [D].

    Returns:
      [..., D] in x's dtype, computed in float32.
    """
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x, scale, bias):
    mean, r = _statistics(x)
    return ((x - mean) * (r * scale) + bias).astype(x.dtype), (x, mean, r, scale, bias)


def _layer_norm_backward(kept, gradient):
    x, mean, r, scale, bias = kept
    normed = (x - mean) * r
    gradient = gradient.astype(jnp.float32)
    scaled = gradient * scale
    mean_scaled, mean_product = (each.mean(axis=-1, keepdims=True) for each in (scaled, scaled * normed))
    rows = tuple(range(x.ndim - 1))
    return (
        (r * (scaled - mean_scaled - normed * mean_product)).astype(x.dtype),
        (gradient * normed).sum(rows).astype(scale.dtype),
        gradient.sum(rows).astype(bias.dtype),
    )


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis.

    Attributes:
      learned: whether there is a learned scale and bias.
    """

    learned: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> [..., D]."""
        scale, bias = jnp.ones(x.shape[-1:]), jnp.zeros(x.shape[-1:])
        if self.learned:
            scale = self.param("scale", nn.initializers.ones, scale.shape)
            bias = self.param("bias", nn.initializers.zeros, bias.shape)
        return layer_norm(x, scale, bias)
