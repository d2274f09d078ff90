"""What images are scored by: features of the FID Inception network, or pixels where there are no weights."""

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

# Of 2, 4, 8, 16 and 32 the fastest on two CPU cores: activations of more leave the caches. An accelerator wants more.
_IMAGES_A_DEVICE = {"cpu": 2}
_IMAGES_AN_ACCELERATOR = 64
# The covariance of more numbers than these takes gigabytes, and says nothing that Inception features would not.
_MOST_PIXELS = 64 * 64
# As the digits' data set counts them.
_GREY_LEVELS = 16


class Features(NamedTuple):
    """Of a batch of images, float32.

    Attributes:
      pool: [B, F]: Frechet distance, precision and recall.
      spatial: [B, ...]: sFID; None of pixels.
      logits: [B, classes]: Inception Score; None of pixels.
    """

    pool: np.ndarray
    spatial: np.ndarray | None
    logits: np.ndarray | None


class Extractor(Protocol):
    """Images to features.

    Attributes:
      name: inception or pixels.
      fingerprint: tells its weights from all others.
      resize: what it does with the size of images.
      batch_size: images it works on at once.
      num_spatial: numbers of an image's spatial features, 0 where there are none.
    """

    name: str
    fingerprint: str
    resize: str
    batch_size: int
    num_spatial: int

    def num_features(self, size: tuple[int, int]) -> int:
        """F, for images of a height and width. Raises UserError where they are unfit."""

    def extract(self, images: np.ndarray) -> Features:
        """uint8 [B, H, W, 3], B at most `batch_size`, -> features; perhaps not computed yet."""


class InceptionExtractor:
    """The FID Inception network on all devices of this machine, each with all the weights and a part of the batch."""

    name = "inception"
    resize = "TensorFlow 1 bilinear to 299 x 299, no rounding"
    # Seven channels of Mixed_6d, 17 x 17 places.
    num_spatial = 7 * 17 * 17

    def __init__(
        self, model: InceptionV3, params: Mapping[str, Any], mesh: Mesh | None = None, batch_size: int | None = None
    ):
        """Args:
        model, params: the network.
        mesh: by default all devices of this machine.
        batch_size: a multiple of the devices.
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
        """As `Extractor.num_features`."""
        return 2048

    def extract(self, images: np.ndarray) -> Features:
        """As `Extractor.extract`."""
        # One shape, so that it is compiled once.
        padding = [(0, self.batch_size - len(images))] + [(0, 0)] * 3
        features = self._apply(self._params, np.pad(images, padding))
        return Features(*(each[: len(images)] for each in features))


def _apply(model: InceptionV3, params: Mapping[str, Any], images: jax.Array) -> InceptionFeatures:
    return model.apply({"params": params}, images)


class PixelExtractor:
    """Grey levels 0..16 of small images, such as the digits: no network, and no Frechet distance that papers report."""

    name = "pixels"
    fingerprint = "pixels"
    resize = "none: each pixel's grey level, rounded to 0..16"
    batch_size = 1024
    num_spatial = 0

    def num_features(self, size: tuple[int, int]) -> int:
        """As `Extractor.num_features`."""
        if size[0] * size[1] > _MOST_PIXELS:
            raise UserError(
                f"--features=pixels is of images of at most {_MOST_PIXELS} pixels, not {size[1]} x {size[0]}: name "
                "Inception weights with --inception=WEIGHTS"
            )
        return size[0] * size[1]

    def extract(self, images: np.ndarray) -> Features:
        """As `Extractor.extract`."""
        grey = np.rint(images.mean(axis=3, dtype=np.float32) * np.float32(_GREY_LEVELS / 255))
        return Features(grey.reshape(len(images), -1), None, None)


def open_extractor(name: str, inception: epath.PathLike | None) -> Extractor:
    """An extractor by name, and for inception its weights.

    Raises:
      UserError: weights are missing, or are not of the network.
    """
    if name == PixelExtractor.name:
        if inception:
            raise UserError(f"--inception={inception} and --features=pixels exclude each other")
        return PixelExtractor()
    if not inception:
        raise UserError(
            "name the weights of the FID Inception network with --inception=WEIGHTS, or score small images with "
            "--features=pixels"
        )
    weights = load_weights(inception, "inception")
    return InceptionExtractor(weights.model, weights.params)


def extract_all(extractor: Extractor, batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, Features]]:
    """Images of batches of any size and their features on the host, in order; the next are prepared meanwhile."""
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
