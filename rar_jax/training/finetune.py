"""Beginning with the weights of another run, also one with other classes, another codebook or another grid."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from rar_jax.errors import UserError
from rar_jax.models.sizes import ModelConfig

# What a change of each size re-initialises; the embedding table is taken part by part.
_DEPENDS_ON = {
    "grid_side": ("position_embedding", "target_aware_embedding", "step_embedding"),
    "codebook_size": ("lm_head/kernel", "lm_head/bias"),
}
_SAME = ("width", "depth", "num_heads", "mlp_width")
_TABLE = "embeddings/embedding"


def check_sizes(ours: ModelConfig, theirs: ModelConfig) -> None:
    """Raises a `UserError` that names the sizes in which weights must agree and do not."""
    different = [name for name in _SAME if getattr(ours, name) != getattr(theirs, name)]
    if different:
        raise UserError(
            "config.init_from has "
            + ", ".join(f"config.model.{name}={getattr(theirs, name)}, not {getattr(ours, name)}" for name in different)
            + ": only classes, codebook and grid may differ"
        )


def begin_from(
    ours: ModelConfig, params: Mapping[str, Any], theirs: ModelConfig, weights: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Parameters with all that fits taken from other weights.

    Args:
      ours: the network to be trained. params: its initial parameters.
      theirs: the network of the weights; see `check_sizes`. weights: its parameters.

    Returns:
      The parameters, NumPy arrays; and what was left as it was initialised, for people.
    """
    initial = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
    given = flax.traverse_util.flatten_dict(weights, sep="/")
    changed = {
        path for size, paths in _DEPENDS_ON.items() if getattr(ours, size) != getattr(theirs, size) for path in paths
    }
    taken, left = {}, []
    for path, value in initial.items():
        if path == _TABLE:
            taken[path] = table = np.array(value)
            for part, rows, their_rows in _parts(ours, theirs):
                if rows.stop - rows.start == their_rows.stop - their_rows.start:
                    table[rows] = np.asarray(given[path][their_rows])
                else:
                    left.append(f"{path} ({part})")
        elif path in changed or path not in given:
            taken[path] = value
            left.append(path)
        else:
            taken[path] = np.asarray(given[path])
    return flax.traverse_util.unflatten_dict(taken, sep="/"), left


def _parts(ours: ModelConfig, theirs: ModelConfig) -> list[tuple[str, slice, slice]]:
    """The parts of the embedding table, and their rows in both."""

    def rows(model):
        codes, classes = model.codebook_size + 1, model.num_classes
        return slice(0, codes), slice(codes, codes + classes), slice(codes + classes, codes + classes + 1)

    return list(zip(("codes", "classes", "null class"), rows(ours), rows(theirs), strict=True))
