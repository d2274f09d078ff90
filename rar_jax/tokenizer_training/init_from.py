"""The codebook and the weights that a new run starts with: those of another tokenizer, and the means of clusters."""

import logging
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rar_jax.checkpoints.weights import Weights, load_weights
from rar_jax.data.image_loader import TrainImages
from rar_jax.errors import UserError, naming
from rar_jax.models.sizes import num_groups
from rar_jax.models.vqgan import VQGAN
from rar_jax.parallel.distributed import is_first, together
from rar_jax.tokenizer_config import TokenizerConfig
from rar_jax.tokenizer_training.quantizers import kmeans_codebook

_log = logging.getLogger(__name__)

CODEBOOK = "quantize/embedding"
# Number of latents per code from which k-means finds the codes.
_LATENTS_A_CODE = 16
# Images that are encoded at once.
_IMAGES_AT_ONCE = 16


def load_init_from(config: TokenizerConfig) -> Weights:
    """Loads the weights that `config.init_from` names.

    Raises:
      UserError: they cannot be read, or their norms have another number of groups.
    """
    with naming(f"config.init_from={config.init_from}"):
        weights = load_weights(config.init_from, "vqgan")
    ours, theirs = config.model, weights.model.config
    for channels in ours.level_widths:
        our_groups, their_groups = (num_groups(each.groups, channels) for each in (ours, theirs))
        if our_groups != their_groups:
            raise UserError(
                f"config.model.groups={ours.groups} gives {our_groups} groups to norms of {channels} channels, but in "
                f"config.init_from={config.init_from} they have {their_groups}: set "
                f"--config.model.groups={theirs.groups}"
            )
    return weights


def merge_params(
    config: TokenizerConfig, params: dict[str, Any], weights: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Copies the parameters that fit from other weights: those that have the same name and shape.

    Args:
      config: the run's config. The codes of FSQ are not copied.
      params: the initial parameters.
      weights: the parameters of the other tokenizer.

    Returns:
      The parameters, and the names of those that keep their initial values.
    """
    initial = flax.traverse_util.flatten_dict(params, sep="/")
    given = flax.traverse_util.flatten_dict(weights, sep="/")
    if config.quantizer.kind == "fsq":
        given.pop(CODEBOOK)
    left = [path for path, value in initial.items() if path not in given or given[path].shape != value.shape]
    merged = {path: value if path in left else np.asarray(given[path]) for path, value in initial.items()}
    return flax.traverse_util.unflatten_dict(merged, sep="/"), left


def start_codebook(model: VQGAN, params: dict[str, Any], batches: TrainImages, seed: int) -> np.ndarray:
    """Returns the means of clusters of the encoder's latents: float32 [V, d], the same in all processes.

    Args:
      model: the network.
      params: its parameters, NumPy arrays.
      batches: whole training batches.
      seed: seed of the clusters.
    """
    codebook = np.zeros((model.config.codebook_size, model.config.latent_width), np.float32)
    # The other processes wait for the first one, also if it cannot read an image.
    with together():
        if is_first():
            latents = _latents(model, params, batches, _LATENTS_A_CODE * model.config.codebook_size)
            codebook = kmeans_codebook(latents, model.config.codebook_size, seed)
            _log.info("the codebook starts from clusters of %d latents", len(latents))
    return np.asarray(multihost_utils.broadcast_one_to_all(codebook))


def _latents(model: VQGAN, params: dict[str, Any], batches: TrainImages, wanted: int) -> np.ndarray:
    """Returns the encoder's latents of the first batches, float32 [N, d], N at least `wanted`."""
    encode = jax.jit(
        lambda params, images: model.apply({"params": params}, images / 255, method=lambda vqgan, x: vqgan.encoder(x))
    )
    found, number = [], 0
    while sum(map(len, found)) < wanted:
        batch = batches[number]["image"].astype(jnp.float32)
        number += 1
        # The images of all devices would not fit in the memory of one.
        for start in range(0, len(batch), _IMAGES_AT_ONCE):
            latents = encode(params, batch[start : start + _IMAGES_AT_ONCE])
            found.append(np.asarray(latents).reshape(-1, model.config.latent_width))
    return np.concatenate(found)
