"""Tokenizers, which convert images to codes and back."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rar_jax.checkpoints.weights import fingerprint, load_weights
from rar_jax.config import Config
from rar_jax.data.digits import DigitsTokenizer
from rar_jax.errors import UserError
from rar_jax.models.vqgan import VQGAN
from rar_jax.parallel.mesh import batch_sharding, local_mesh, replicated

# On one CPU core, 1, 2 and 4 take the same time for each image, and 16 up to a fifth more.
_IMAGES_A_DEVICE = {"cpu": 2}
_IMAGES_AN_ACCELERATOR = 16


class Tokenizer(Protocol):
    """Converts images to codes and back, in batches of any size.

    Attributes:
      fingerprint: identifies the weights. Equal weights in different files have the same fingerprint.
      batch_size: number of images that are processed at once. A smaller batch costs as much.
      grid_side: side of the token grid; T = grid_side ** 2.
      codebook_size: V.
      downsampling: side in pixels of the patch that a token represents.
    """

    fingerprint: str
    batch_size: int
    grid_side: int
    codebook_size: int
    downsampling: int

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Encodes images: uint8 [B, H, W, 3] -> int32 [B, T]."""

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Decodes codes: int [B, T] -> uint8 [B, H, W, 3]."""

    def begin_decode(self, tokens: np.ndarray) -> Callable[[], np.ndarray]:
        """Starts to decode codes on the devices. Returns a function that waits for the images and returns them."""


class VQGANTokenizer:
    """A MaskGIT-VQGAN on all devices of this machine. Each device has all the weights."""

    def __init__(self, model: VQGAN, params: Mapping[str, Any], image_size: int):
        """Puts the weights on the devices.

        Args:
          model, params: the network and its weights.
          image_size: side of the images in pixels.

        Raises:
          UserError: the image size is not a multiple of the network's downsampling.
        """
        self.downsampling = model.config.downsampling
        if image_size < 1 or image_size % self.downsampling:
            raise UserError(
                f"image size {image_size} must be a multiple of {self.downsampling}, the tokenizer's downsampling"
            )
        mesh = local_mesh()
        self.fingerprint = _vqgan_fingerprint(params)
        platform = mesh.devices.flat[0].platform
        self.batch_size = mesh.size * _IMAGES_A_DEVICE.get(platform, _IMAGES_AN_ACCELERATOR)
        self.grid_side = image_size // self.downsampling
        self.codebook_size = model.config.codebook_size
        self._params = jax.device_put(params, replicated(mesh))
        jit = functools.partial(
            jax.jit, in_shardings=(replicated(mesh), batch_sharding(mesh)), out_shardings=batch_sharding(mesh)
        )

        @jit
        def encode(params, images):
            return model.apply({"params": params}, images.astype(jnp.float32) / 255, method="encode")

        @jit
        def decode(params, codes):
            return model.apply({"params": params}, codes, method="decode_pixels")

        self._encode, self._decode = encode, decode

    def encode(self, images: np.ndarray) -> np.ndarray:
        """See `Tokenizer.encode`."""
        return self._begin(self._encode, images)().reshape(len(images), -1)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """See `Tokenizer.decode`."""
        return self.begin_decode(tokens)()

    def begin_decode(self, tokens: np.ndarray) -> Callable[[], np.ndarray]:
        """See `Tokenizer.begin_decode`."""
        tokens = np.asarray(tokens, np.int32).reshape(len(tokens), self.grid_side, self.grid_side)
        return self._begin(self._decode, tokens)

    def _begin(self, function: Callable, rows: np.ndarray) -> Callable[[], np.ndarray]:
        """Starts to apply a function, in batches of the one size that it is compiled for."""
        results = []
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            padding = [(0, self.batch_size - len(batch))] + [(0, 0)] * (rows.ndim - 1)
            results.append(function(self._params, np.pad(batch, padding)))
        return lambda: np.concatenate(jax.device_get(results))[: len(rows)]


def _vqgan_fingerprint(params: Mapping[str, Any]) -> str:
    return f"vqgan-{fingerprint(params)}"


def tokenizer_codes(name: str) -> tuple[str, int]:
    """Returns the fingerprint and the codebook size of a tokenizer by name, for codes that it made elsewhere.

    The names are those of `open_tokenizer`.

    Raises:
      UserError: no tokenizer has this name.
    """
    if name == DigitsTokenizer.fingerprint:
        return name, DigitsTokenizer.codebook_size
    weights = load_weights(name, "vqgan")
    return _vqgan_fingerprint(weights.params), weights.model.config.codebook_size


def open_tokenizer(name: str, image_size: int) -> Tokenizer:
    """Opens a tokenizer by name.

    Args:
      name: `digits`, or the path of MaskGIT-VQGAN weights of any size (see `checkpoints.weights.load_weights`).
      image_size: side of the images in pixels.

    Raises:
      UserError: no tokenizer has this name, or it cannot encode images of this size.
    """
    if name == DigitsTokenizer.fingerprint:
        tokenizer = DigitsTokenizer()
        if image_size != (side := tokenizer.grid_side * tokenizer.downsampling):
            raise UserError(f"image size {image_size} must be {side}: the digits tokenizer has no other size")
        return tokenizer
    weights = load_weights(name, "vqgan")
    return VQGANTokenizer(weights.model, weights.params, image_size)


def tokenizer_for(config: Config, name: str) -> tuple[Tokenizer, Config]:
    """Opens a tokenizer for the codes of a model, and returns it with the model's config changed to use it.

    Args:
      config: config of the model. Its own tokenizer and image size are ignored.
      name: see `open_tokenizer`.

    Raises:
      UserError: the tokenizer cannot be read or does not fit the model. The message gives both values.
    """
    model = config.model
    if name == DigitsTokenizer.fingerprint:
        tokenizer = DigitsTokenizer()
    else:
        weights = load_weights(name, "vqgan")
        tokenizer = VQGANTokenizer(
            weights.model, weights.params, image_size=model.grid_side * weights.model.config.downsampling
        )
    for field in ("grid_side", "codebook_size"):
        if (ours := getattr(model, field)) != (theirs := getattr(tokenizer, field)):
            raise UserError(
                f"--tokenizer={name} has {field}={theirs}, but the model has {ours}: name the tokenizer that the model "
                "was trained with"
            )
    factor = tokenizer.downsampling
    data = dataclasses.replace(config.data, tokenizer=name, image_size=model.grid_side * factor, downsampling=factor)
    return tokenizer, dataclasses.replace(config, data=data)


def load_tokenizer(config: Config) -> Tokenizer | None:
    """Opens the tokenizer of a config. Returns None if it has none.

    Raises:
      UserError: the tokenizer cannot be read or does not fit the model. The message gives both values.
    """
    name = config.data.tokenizer
    if name == "none":
        return None
    try:
        tokenizer = open_tokenizer(name, config.data.image_size)
    except UserError as error:
        raise UserError(
            f"config.data.tokenizer={name}: {error}; it must be digits, none or the weights of a VQGAN"
        ) from None
    for field, ours, theirs in (
        ("model.grid_side", config.model.grid_side, tokenizer.grid_side),
        ("model.codebook_size", config.model.codebook_size, tokenizer.codebook_size),
        ("data.downsampling", config.data.downsampling, tokenizer.downsampling),
    ):
        if ours != theirs:
            raise UserError(
                f"config.{field}={ours}, but config.data.tokenizer={config.data.tokenizer} has {theirs}: "
                f"set --config.{field}={theirs}, or choose another tokenizer, such as none"
            )
    return tokenizer


def decoded(
    tokenizer: Tokenizer, tokens: np.ndarray, on_batch: Callable[[int], None] = lambda images: None
) -> Iterator[np.ndarray]:
    """Decodes codes int [N, T] and yields images uint8 [B, H, W, 3], in batches of the tokenizer's batch size.

    Calls `on_batch(n)` after each batch of n images.
    """
    for start in range(0, len(tokens), tokenizer.batch_size):
        images = tokenizer.decode(tokens[start : start + tokenizer.batch_size])
        on_batch(len(images))
        yield images
