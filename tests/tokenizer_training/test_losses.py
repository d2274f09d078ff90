import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rar_jax.checkpoints.pytorch import inception_from_pytorch
from rar_jax.tokenizer_config import LossConfig
from rar_jax.tokenizer_training.losses import (
    adversarial_loss,
    balance,
    discriminator_loss,
    inception_distance,
    reconstruction_losses,
)


def test_reconstruction_losses_are_weighted():
    images, originals = np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4, 3), np.float32)
    images[0] = 0.5
    config = LossConfig(l1=2.0, l2=3.0, perceptual=4.0)
    total, losses = reconstruction_losses(config, images, originals, lambda a, b: jnp.float32(0.1))
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(
        {"l1": 0.25, "l2": 0.125, "perceptual": 0.1}
    )
    assert float(total) == pytest.approx(2 * 0.25 + 3 * 0.125 + 4 * 0.1)


def test_hinge_losses():
    real, fake = jnp.array([2.0, 0.5, -1.0]), jnp.array([-2.0, -0.5, 1.0])
    # Only outputs within the margin of 1 count: (0 + 0.5 + 2) / 3 for both.
    assert discriminator_loss(real, fake) == pytest.approx(2.5 / 3)
    assert adversarial_loss(fake) == pytest.approx(0.5)


def test_balance_is_the_quotient_of_the_norms():
    first, second = jnp.full((3, 3, 2, 3), 2.0), jnp.full((3, 3, 2, 3), 0.5)
    assert balance(first, second) == pytest.approx(4, rel=1e-3)
    assert balance(first, jnp.zeros_like(first)) == 1e4


def test_the_perceptual_distance_sees_structure(inception_tensors):
    """The FID Inception network has the layers that are compared. `test_step` compares the value with NumPy."""
    model, params = inception_from_pytorch(inception_tensors)
    function = jax.jit(jax.value_and_grad(functools.partial(inception_distance, model), argnums=1))
    distance = functools.partial(function, params)
    images = np.random.default_rng(0).random((1, 16, 16, 3)).astype(np.float32)
    assert distance(images, images)[0] == pytest.approx(0, abs=1e-9)
    value, gradient = distance(images[:, ::-1], images)
    # The squared difference of two vectors of unit length is at most 4.
    assert 0.01 < value < 4 and np.isfinite(gradient).all() and np.any(gradient)
