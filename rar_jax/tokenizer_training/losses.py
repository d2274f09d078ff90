"""The losses of a tokenizer: reconstruction, perceptual distance, and those of the discriminator."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rar_jax.models.inception import InceptionV3
from rar_jax.tokenizer_config import LossConfig

# The layers of the Inception network whose features are compared.
_LAYERS = ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e")
# The largest weight of the discriminator's loss, and a number that keeps its denominator from 0 (Esser et al., 2021).
_MAX_BALANCE = 1e4
_LEAST_NORM = 1e-4

# Two batches of images float32 [B, H, W, 3] in [0, 1] -> float32 [].
Distance = Callable[[jax.Array, jax.Array], jax.Array]


def reconstruction_losses(
    config: LossConfig, images: jax.Array, originals: jax.Array, perceptual: Distance | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compares reconstructions with the originals.

    Args:
      config: the weights.
      images, originals: float32 [B, H, W, 3]. The originals are in [0, 1].
      perceptual: a perceptual distance, or None.

    Returns:
      The weighted sum, and each loss without its weight: l1, l2 and, with `perceptual`, perceptual.
    """
    errors = images - originals
    losses = {"l1": jnp.abs(errors).mean(), "l2": jnp.square(errors).mean()}
    total = config.l1 * losses["l1"] + config.l2 * losses["l2"]
    if perceptual is not None:
        losses["perceptual"] = perceptual(images, originals)
        total += config.perceptual * losses["perceptual"]
    return total, losses


def inception_distance(
    model: InceptionV3, params: Mapping[str, Any], images: jax.Array, originals: jax.Array
) -> jax.Array:
    """Computes a perceptual distance by features of the FID Inception network: float32 [].

    At each place of a layer, the features of both images are scaled to unit length. The distance is the squared
    difference, averaged over places, images and layers, as in LPIPS (Zhang et al., 2018) without learned weights.

    Args:
      model, params: the network and its weights.
      images, originals: float32 [B, H, W, 3] in [0, 1]. The originals get no gradient.
    """

    def features(images):
        _, captured = model.apply(
            {"params": params},
            255 * images,
            capture_intermediates=lambda module, _: module.name in _LAYERS,
            mutable="intermediates",
        )
        layers = [captured["intermediates"][name]["__call__"][0] for name in _LAYERS]
        return [x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-8) for x in layers]

    # The compiler leaves out the layers after the last one that is compared.
    pairs = zip(features(images), features(jax.lax.stop_gradient(originals)), strict=True)
    return jnp.mean(jnp.stack([jnp.mean(jnp.sum((a - b) ** 2, axis=-1)) for a, b in pairs]))


def discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Computes the hinge loss of a discriminator from its outputs for originals and for reconstructions."""
    return (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))) / 2


def adversarial_loss(fake: jax.Array) -> jax.Array:
    """Computes the tokenizer's loss from the discriminator's outputs for reconstructions."""
    return -jnp.mean(fake)


def balance(reconstruction_gradient: jax.Array, adversarial_gradient: jax.Array) -> jax.Array:
    """Returns the weight that makes two losses equally strong, before `config.loss.adversarial`: float32 [].

    It is the quotient of the norms of both losses' gradients at the decoder's last layer (Esser et al., 2021,
    equation 7), at most 10,000.

    Args:
      reconstruction_gradient, adversarial_gradient: gradients with respect to the kernel of the last layer.
    """
    norm = jnp.linalg.norm(reconstruction_gradient.ravel())
    other = jnp.linalg.norm(adversarial_gradient.ravel())
    return jnp.minimum(norm / (other + _LEAST_NORM), _MAX_BALANCE)
