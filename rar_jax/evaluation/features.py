"""Computes features to score images: those of the FID Inception network, or pixels, which need no weights."""

import collections
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from rar_jax.checkpoints.weights import fingerprint, load_weights
from rar_jax.errors import UserError
from rar_jax.models.inception import InceptionFeatures, InceptionV3
from rar_jax.parallel.mesh import batch_sharding, make_mesh, replicated

# On two CPU cores, 2 is the fastest of 2, 4, 8, 16 and 32, because the activations fit the caches.
_IMAGES_A_DEVICE = {"cpu": 2}
_IMAGES_AN_ACCELERATOR = 64
# A covariance of more numbers takes gigabytes. Inception features suit such images better.
_MOST_PIXELS = 64 * 64
# The largest grey level, as in the digits' data set.
_GREY_LEVELS = 16


class Features(NamedTuple):
    """The features of a batch of images, float32.

    Attributes:
      pool: [B, F], for the Frechet distance, precision and recall.
      spatial: [B, ...], for sFID; None for pixels.
      logits: [B, classes], for the Inception Score; None for pixels.
    """

    pool: np.ndarray
    spatial: np.ndarray | None
    logits: np.ndarray | None


class Extractor(Protocol):
    """Computes features of images.

    Attributes:
      name: `inception` or `pixels`.
      fingerprint: identifies the weights.
      resize: a text that says how images are resized.
      batch_size: number of images that are processed at once.
      num_spatial: how many numbers the spatial features of an image have, 0 if there are none.
    """

    name: str
    fingerprint: str
    resize: str
    batch_size: int
    num_spatial: int

    def num_features(self, size: tuple[int, int]) -> int:
        """Returns F for images of a size (height, width). Raises UserError if the size is not supported."""

    def extract(self, images: np.ndarray) -> Features:
        """Starts to compute the features of images uint8 [B, H, W, 3], B at most `batch_size`, and returns them."""


class InceptionExtractor:
    """The FID Inception network on all devices of this machine. Each has all the weights and a part of the batch."""

    name = "inception"
    resize = "TensorFlow 1 bilinear to 299 x 299, no rounding"
    # Seven channels of Mixed_6d at 17 x 17 places.
    num_spatial = 7 * 17 * 17

    def __init__(
        self, model: InceptionV3, params: Mapping[str, Any], mesh: Mesh | None = None, batch_size: int | None = None
    ):
        """Puts the weights on the devices.

        Args:
          model, params: the network and its weights.
          mesh: the devices; by default all devices of this machine.
          batch_size: a multiple of the number of devices; by default one that suits them.
        """
        mesh = mesh or make_mesh((jax.local_device_count(), 1), jax.local_devices())
        self.fingerprint = f"inception-{fingerprint(params)}"
        platform = mesh.devices.flat[0].platform
        self.batch_size = batch_size or mesh.size * _IMAGES_A_DEVICE.get(platform, _IMAGES_AN_ACCELERATOR)
        self._params = jax.device_put(params, replicated(mesh))
        self._apply = jax.jit(
            functools.partial(_apply, model),
            in_shardings=(replicated(mesh), batch_sharding(mesh)),
            out_shardings=batch_sharding(mesh),
        )

    def num_features(self, size: tuple[int, int]) -> int:
        """See `Extractor.num_features`."""
        return 2048

    def extract(self, images: np.ndarray) -> Features:
        """See `Extractor.extract`."""
        # Every batch is padded to one shape, so that the network is compiled once.
        padding = [(0, self.batch_size - len(images))] + [(0, 0)] * 3
        features = self._apply(self._params, np.pad(images, padding))
        return Features(*(each[: len(images)] for each in features))


def _apply(model: InceptionV3, params: Mapping[str, Any], images: jax.Array) -> InceptionFeatures:
    return model.apply({"params": params}, images)


class PixelExtractor:
    """Grey levels 0..16 of small images, such as the digits.

    This needs no network, but its Frechet distance is not the FID that papers report.
    """

    name = "pixels"
    fingerprint = "pixels"
    resize = "none: each pixel's grey level, rounded to 0..16"
    batch_size = 1024
    num_spatial = 0

    def num_features(self, size: tuple[int, int]) -> int:
        """See `Extractor.num_features`."""
        if size[0] * size[1] > _MOST_PIXELS:
            raise UserError(
                f"--features=pixels supports images of at most {_MOST_PIXELS} pixels, not {size[1]} x {size[0]}: use "
                "--features=inception with --inception=WEIGHTS"
            )
        return size[0] * size[1]

    def extract(self, images: np.ndarray) -> Features:
        """See `Extractor.extract`."""
        grey = np.rint(images.mean(axis=3, dtype=np.float32) * np.float32(_GREY_LEVELS / 255))
        return Features(grey.reshape(len(images), -1), None, None)


def open_extractor(name: str, inception: epath.PathLike | None) -> Extractor:
    """Opens an extractor.

    Args:
      name: `inception` or `pixels`.
      inception: path of the weights of the FID Inception network, which only `inception` takes.

    Raises:
      UserError: the weights are missing, are not those of this network, or are given for `pixels`.
    """
    if name == PixelExtractor.name:
        if inception:
            raise UserError(f"--inception={inception} and --features=pixels exclude each other: remove one of them")
        return PixelExtractor()
    if not inception:
        raise UserError(
            "--features=inception needs the weights of the FID Inception network: name them with --inception=WEIGHTS, "
            "or score small images with --features=pixels"
        )
    weights = load_weights(inception, "inception")
    return InceptionExtractor(weights.model, weights.params)


def extract_all(extractor: Extractor, batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, Features]]:
    """Yields images and their features on the host, in order. The devices compute the next batch meanwhile.

    Args:
      extractor: computes the features.
      batches: uint8 [B, H, W, 3] each, of any size B.
    """
    waiting = collections.deque()
    for batch in batches:
        for start in range(0, len(batch), extractor.batch_size):
            images = batch[start : start + extractor.batch_size]
            waiting.append((images, extractor.extract(images)))
            if len(waiting) > 1:
                yield _on_host(*waiting.popleft())
    for each in waiting:
        yield _on_host(*each)


def _on_host(images: np.ndarray, features: Features) -> tuple[np.ndarray, Features]:
    return images, Features(*jax.device_get(tuple(features)))
