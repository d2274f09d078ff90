"""Computes features to score images: those of the FID Inception network, pixels, or those of the glyphs' classifier."""

import collections
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from etils import epath

from rar_jax.checkpoints.weights import fingerprint, load_weights
from rar_jax.data.glyphs import SIDE
from rar_jax.errors import UserError
from rar_jax.evaluation import glyph_classifier
from rar_jax.evaluation.statistics import inception_score
from rar_jax.models.inception import InceptionFeatures, InceptionV3
from rar_jax.parallel.mesh import batch_sharding, local_mesh, replicated

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
      spatial: [B, ...], for sFID; None for pixels and glyphs.
      logits: [B, classes], for scores of classes; None for pixels.
    """

    pool: np.ndarray
    spatial: np.ndarray | None
    logits: np.ndarray | None


class Extractor(Protocol):
    """Computes features of images.

    Attributes:
      name: one of `NAMES`.
      fingerprint: identifies the weights.
      resize: a text that says how images are resized.
      batch_size: number of images that are processed at once.
      num_spatial: how many numbers the spatial features of an image have, 0 if there are none.
      class_score: the name of the score that is computed from logits, or None.
    """

    name: str
    fingerprint: str
    resize: str
    batch_size: int
    num_spatial: int
    class_score: str | None

    def num_features(self, size: tuple[int, int]) -> int:
        """Returns F for images of a size (height, width). Raises UserError if the size is not supported."""

    def extract(self, images: np.ndarray) -> Features:
        """Starts to compute the features of images uint8 [B, H, W, 3], B at most `batch_size`, and returns them."""

    def score_classes(self, logits: np.ndarray, labels: np.ndarray | None) -> float | None:
        """Returns the `class_score` of logits [N, classes], or None if it needs labels int [N] that are not known."""


class InceptionExtractor:
    """The FID Inception network on all devices of this machine. Each has all the weights and a part of the batch."""

    name = "inception"
    resize = "TensorFlow 1 bilinear to 299 x 299, no rounding"
    # Seven channels of Mixed_6d at 17 x 17 places.
    num_spatial = 7 * 17 * 17
    class_score = "inception_score"

    def __init__(self, model: InceptionV3, params: Mapping[str, Any]):
        """Puts the weights on the devices."""
        mesh = local_mesh()
        self.fingerprint = f"inception-{fingerprint(params)}"
        platform = mesh.devices.flat[0].platform
        self.batch_size = mesh.size * _IMAGES_A_DEVICE.get(platform, _IMAGES_AN_ACCELERATOR)
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

    def score_classes(self, logits: np.ndarray, labels: np.ndarray | None) -> float:
        """See `Extractor.score_classes`. The Inception Score needs no labels."""
        return inception_score(logits)


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
    class_score = None

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


class GlyphExtractor:
    """The features of the glyphs' classifier. Their Frechet distance is not the FID that papers report."""

    name = "glyphs"
    resize = "none"
    batch_size = glyph_classifier.BATCH_SIZE
    num_spatial = 0
    class_score = "glyph_accuracy"

    def __init__(self):
        """Does not yet train the classifier."""
        self.fingerprint = f"glyphs-{glyph_classifier.fingerprint()}"

    def num_features(self, size: tuple[int, int]) -> int:
        """See `Extractor.num_features`."""
        if size != (SIDE, SIDE):
            raise UserError(f"--features=glyphs needs images of {SIDE} x {SIDE} pixels, not {size[1]} x {size[0]}")
        return glyph_classifier.RECIPE.num_features

    def extract(self, images: np.ndarray) -> Features:
        """See `Extractor.extract`. The classifier is trained when it is first needed."""
        features, logits = glyph_classifier.glyph_classifier().outputs(images)
        return Features(features, None, logits)

    def score_classes(self, logits: np.ndarray, labels: np.ndarray | None) -> float | None:
        """See `Extractor.score_classes`. The score is the share of images that are recognised as their class."""
        return None if labels is None else glyph_classifier.recognised(logits, labels)


NAMES = (InceptionExtractor.name, PixelExtractor.name, GlyphExtractor.name)


def open_extractor(name: str, inception: epath.PathLike | None) -> Extractor:
    """Opens an extractor.

    Args:
      name: one of `NAMES`.
      inception: path of the weights of the FID Inception network, which only `inception` takes.

    Raises:
      UserError: the weights are missing, are not those of this network, or are given for other features.
    """
    if name != InceptionExtractor.name:
        if inception:
            raise UserError(f"--inception={inception} and --features={name} exclude each other: remove one of them")
        return {each.name: each for each in (PixelExtractor, GlyphExtractor)}[name]()
    if not inception:
        raise UserError(
            "--features=inception needs the weights of the FID Inception network: name them with --inception=WEIGHTS, "
            "or score small images with --features=pixels or --features=glyphs"
        )
    weights = load_weights(inception, "inception")
    return InceptionExtractor(weights.model, weights.params)


def check_scored_labels(extractor: Extractor, labels: np.ndarray | None) -> None:
    """Raises a `UserError` if the classes of images, int [N] or None, cannot be scored with these features."""
    if labels is not None and extractor.name == GlyphExtractor.name:
        glyph_classifier.check_glyph_labels(labels)


def extract_all(extractor: Extractor, batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, Features]]:
    """Yields images and their features on the host, in order. The devices compute the next batch meanwhile.

    Args:
      extractor: computes the features.
      batches: uint8 [B, H, W, 3] each, of any size B. They are regrouped into batches of `extractor.batch_size`.
    """
    waiting = collections.deque()
    for images in _regrouped(batches, extractor.batch_size):
        waiting.append((images, extractor.extract(images)))
        if len(waiting) > 1:
            yield _on_host(*waiting.popleft())
    for each in waiting:
        yield _on_host(*each)


def _regrouped(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yields the rows of batches in batches of `size`; the last one can have fewer."""
    held = None
    for batch in batches:
        rows = batch if held is None else np.concatenate([held, batch])
        whole = len(rows) // size * size
        for start in range(0, whole, size):
            yield rows[start : start + size]
        held = rows[whole:] if whole < len(rows) else None
    if held is not None:
        yield held


def _on_host(images: np.ndarray, features: Features) -> tuple[np.ndarray, Features]:
    return images, Features(*jax.device_get(tuple(features)))
