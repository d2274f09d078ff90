"""A small convolutional network that reads glyphs. It scores samples and reconstructions of them, and gives features.

It is trained on real glyphs of all 36 classes when it is first needed, in less than a minute on two CPU cores, and kept
in the user's cache folder. Two machines train networks that differ slightly, as sums round differently. Compare scores
of one machine, or copy the cached file.
"""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from rar_jax.data.glyphs import IDENTITY, NUM_CLASSES, SIDE, glyph_images
from rar_jax.errors import UserError
from rar_jax.files import cache_folder, replacing
from rar_jax.progress import Progress

_log = logging.getLogger(__name__)

# Images that are classified at once.
BATCH_SIZE = 200


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the classifier is trained. Adam's learning rate rises and falls over all steps (`cosine_onecycle_schedule`).

    Attributes:
      num_images: number of training images of all 36 classes.
      epochs, batch_size, learning_rate: how long and how fast it is trained; the rate is the largest one.
      width: channels of the first layer.
      num_features: F, units of the layer before the logits.
    """

    num_images: int = 36_000
    epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 3e-3
    width: int = 16
    num_features: int = 128


RECIPE = Recipe()


class _Network(nn.Module):
    """Three convolutions, each of which halves the side, and two dense layers. Returns features and logits."""

    width: int
    num_features: int

    @nn.compact
    def __call__(self, images):
        x = images.astype(jnp.float32) / 255
        # Shapes matter for the class, and not brightness and contrast.
        x = x - x.mean(axis=(1, 2), keepdims=True)
        x = x / (jnp.sqrt(jnp.square(x).mean(axis=(1, 2, 3), keepdims=True)) + 1e-3)
        for factor, kernel in ((1, 5), (2, 3), (4, 3)):
            x = nn.Conv(factor * self.width, (kernel, kernel), strides=(2, 2), use_bias=False)(x)
            x = nn.relu(nn.LayerNorm()(x))
        features = nn.relu(nn.Dense(self.num_features)(x.reshape(len(x), -1)))
        return features, nn.Dense(max(NUM_CLASSES))(features)


class GlyphClassifier:
    """The trained network."""

    def __init__(self, network: nn.Module, params: Mapping[str, Any]):
        self._params = params
        self._apply = jax.jit(lambda params, images: network.apply({"params": params}, images))

    def outputs(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Applies the network to images, uint8 [N, 32, 32, 3].

        Returns:
          The features before the last layer, float32 [N, F], and the logits of all classes, float32 [N, 36].

        Raises:
          UserError: the images have another size.
        """
        if images.shape[1:] != (SIDE, SIDE, 3):
            raise UserError(f"the classifier of glyphs reads images of {SIDE} x {SIDE} pixels, not {images.shape[1:3]}")
        outputs = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            padded = np.pad(batch, [(0, BATCH_SIZE - len(batch)), (0, 0), (0, 0), (0, 0)])
            outputs.append([np.asarray(output)[: len(batch)] for output in self._apply(self._params, padded)])
        features, logits = map(np.concatenate, zip(*outputs, strict=True))
        return features, logits


def fingerprint() -> str:
    """Returns 12 hexadecimal digits that identify the classifier by its training images and its recipe."""
    return hashlib.sha256(repr((IDENTITY, RECIPE)).encode()).hexdigest()[:12]


def recognised(logits: np.ndarray, labels: np.ndarray, num_classes: int | None = None) -> float:
    """Returns the share of images that are recognised as their class.

    Args:
      logits: [N, 36], see `GlyphClassifier.outputs`.
      labels: int [N], the class of each image.
      num_classes: the number of classes to choose among. By default, the ten digits if all labels are digits, else 36.

    Raises:
      UserError: a label is not that of a glyph.
    """
    check_glyph_labels(labels)
    num_classes = num_classes or min(number for number in NUM_CLASSES if number > labels.max())
    return float(np.mean(logits[:, :num_classes].argmax(axis=1) == labels))


def check_glyph_labels(labels: np.ndarray) -> None:
    """Raises a `UserError` if a label is not that of a glyph."""
    if labels.max() >= max(NUM_CLASSES):
        raise UserError(
            f"the labels go up to {labels.max()}, but the glyphs have the classes 0 to {max(NUM_CLASSES) - 1}: use "
            "other --features"
        )


@functools.cache
def glyph_classifier() -> GlyphClassifier:
    """Returns the classifier, from the user's cache folder if it was trained before on the same images by `RECIPE`."""
    network = _Network(RECIPE.width, RECIPE.num_features)
    params = network.init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.uint8))["params"]
    file: epath.Path = cache_folder("glyph_classifier") / f"{fingerprint()}.msgpack"
    if file.exists():
        params = flax.serialization.from_bytes(params, file.read_bytes())
    else:
        _log.info("trains the classifier of glyphs, once: %s", file)
        params = _train(network, params)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as out:
            out.write(flax.serialization.to_bytes(params))
    return GlyphClassifier(network, params)


def _train(network: nn.Module, params: Mapping[str, Any]) -> Mapping[str, Any]:
    images, labels = glyph_images("train", np.arange(RECIPE.num_images), max(NUM_CLASSES))
    steps = RECIPE.num_images // RECIPE.batch_size
    optimizer = optax.adam(optax.cosine_onecycle_schedule(steps * RECIPE.epochs, RECIPE.learning_rate))

    @jax.jit
    def update(params, state, images, labels):
        def loss(params):
            logits = network.apply({"params": params}, images)[1]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state, random = optimizer.init(params), np.random.default_rng(0)
    progress = Progress("train the classifier", steps * RECIPE.epochs)
    for _ in range(RECIPE.epochs):
        order = random.permutation(RECIPE.num_images)[: steps * RECIPE.batch_size]
        for batch in np.split(order, steps):
            params, state = update(params, state, images[batch], labels[batch])
            progress.update()
    progress.close()
    return jax.device_get(params)
