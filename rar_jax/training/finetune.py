"""Starts a run from the weights of another one, which may have other classes, another codebook or another grid."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from rar_jax.checkpoints.weights import Weights, load_weights
from rar_jax.errors import UserError, naming
from rar_jax.models.sizes import ModelConfig
from rar_jax.parallel.distributed import check_equal, together
from rar_jax.parallel.mesh import fetch, put_tree
from rar_jax.training.state import TrainState

_log = logging.getLogger(__name__)

# Parameters that a change of each size reinitialises. The embedding table is copied part by part instead.
_DEPENDS_ON = {
    "grid_side": ("position_embedding", "target_aware_embedding", "step_embedding"),
    "codebook_size": ("lm_head/kernel", "lm_head/bias"),
}
_SAME = ("width", "depth", "num_heads", "mlp_width")
_TABLE = "embeddings/embedding"


def load_init_from(path: str) -> Weights:
    """Loads the weights that `config.init_from` names into host memory, since the devices may not have room for them.

    Raises:
      UserError: the weights cannot be read.
    """
    try:
        host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        platforms = os.environ.get("JAX_PLATFORMS")
        raise UserError(
            f"config.init_from={path} is read on the CPU, which JAX_PLATFORMS={platforms} leaves out: set it to "
            f"{platforms},cpu"
        ) from None
    with naming(f"config.init_from={path}"):
        return load_weights(path, "rar", sharding=host)


def check_sizes(ours: ModelConfig, theirs: ModelConfig) -> None:
    """Raises a `UserError` that names the sizes that must be equal in the network and in the weights but differ."""
    different = [name for name in _SAME if getattr(ours, name) != getattr(theirs, name)]
    if different:
        raise UserError(
            "config.init_from has "
            + ", ".join(f"config.model.{name}={getattr(theirs, name)}, not {getattr(ours, name)}" for name in different)
            + ": only classes, codebook and grid may differ"
        )


def start_from(path: str, model: ModelConfig, state: TrainState, shardings: TrainState) -> TrainState:
    """Returns an initial state with the weights that `config.init_from` names.

    Args:
      path: `config.init_from`.
      model: the network to train.
      state: its initial state.
      shardings: the shardings of the state, a tree like it.

    Raises:
      UserError: the weights cannot be read, or differ between hosts.
    """
    with together():
        weights = load_init_from(path)
    check_equal(f"config.init_from={path}", weights.identity)
    initial = jax.tree.map(fetch, state.params)
    params, left = merge_params(model, initial, weights.model.config, weights.params)
    _log.info("starts from the weights of %s; reinitialised or left out: %s", path, ", ".join(left) or "nothing")
    state = state.replace(params=put_tree(params, shardings.params))
    if state.ema is not None:
        state = state.replace(ema=put_tree(params, shardings.ema))
    return state


def merge_params(
    ours: ModelConfig, params: Mapping[str, Any], theirs: ModelConfig, weights: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Copies the parameters that fit from other weights.

    Args:
      ours: the network to train.
      params: its initial parameters.
      theirs: the network of the weights; see `check_sizes`.
      weights: its parameters.

    Returns:
      The parameters, NumPy arrays; and, for people to read, the names of those that keep their initial values, and of
      those that the network does not have.
    """
    initial = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
    given = flax.traverse_util.flatten_dict(weights, sep="/")
    changed = {
        path for size, paths in _DEPENDS_ON.items() if getattr(ours, size) != getattr(theirs, size) for path in paths
    }
    merged, left = {}, []
    for path, value in initial.items():
        if path == _TABLE:
            merged[path] = table = np.array(value)
            for part, place, their_place in _table_parts(ours, theirs):
                if place.stop - place.start == their_place.stop - their_place.start:
                    table[place] = np.asarray(given[path][their_place])
                else:
                    left.append(f"{path} ({part})")
        elif path in changed or path not in given:
            merged[path] = value
            left.append(path)
        else:
            merged[path] = np.asarray(given[path])
    left += [f"{path} (left out)" for path in given if path not in initial]
    return flax.traverse_util.unflatten_dict(merged, sep="/"), left


def _table_parts(ours: ModelConfig, theirs: ModelConfig) -> list[tuple[str, slice, slice]]:
    """Returns the parts of the embedding table: name, place in our table and place in theirs."""

    def places(model):
        codes, classes = model.codebook_size + 1, model.num_classes
        return slice(0, codes), slice(codes, codes + classes), slice(codes + classes, codes + classes + 1)

    return list(zip(("codes", "classes", "null class"), places(ours), places(theirs), strict=True))
