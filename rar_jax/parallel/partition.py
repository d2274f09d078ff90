"""Partition rules: which axis of which parameter or activation is split over which axes of the mesh."""

import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rar_jax.parallel.mesh import AXES, replicated

_WEIGHTS = ("fsdp", "tensor")

# Patterns of parameter paths, first match wins. Block parameters have a leading layer axis. What matches nothing
# (biases, norms, the cls token) is replicated. Over `tensor`, the MLP and the projection lie as they are used: hidden
# units and heads. The columns of the qkv kernel are q, k and v, each of all heads, of which no contiguous part is whole
# heads; so its rows are split, and each layer trades them for the columns of its heads. The others are gathered where
# they are used, over both axes.
PARAMETER_RULES = (
    (r"blocks/mlp/fc1/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks/(mlp/fc2|attention/proj)/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"blocks/.*/kernel", PartitionSpec(None, _WEIGHTS, None)),
    (r"(head_modulation|lm_head)/kernel", PartitionSpec(_WEIGHTS, None)),
    (r"embeddings/embedding|(position|target_aware|step)_embedding", PartitionSpec(None, _WEIGHTS)),
)

# Axes of activations, by the names of `models.rar.constrain`. Between the products every device has images of
# its own, also along `tensor`, so that no work on them is done twice (as with sequence parallelism, but our sequences
# are of odd length). Those along `tensor` gather them for the products with split heads or hidden units, and add the
# results up.
ACTIVATION_RULES = (
    ("batch", AXES),
    ("shared_batch", ("data", "fsdp")),
    ("heads", "tensor"),
    ("hidden", "tensor"),
    # Of a kernel that is on its way to a product (`models.rar.gather`).
    ("width", "fsdp"),
    ("inputs", _WEIGHTS),
)


def partition_spec(path: str) -> PartitionSpec:
    """The rule for a parameter, found anywhere in a path, so that optimizer moments follow their parameters."""
    for pattern, spec in PARAMETER_RULES:
        if re.search(rf"(^|/)({pattern})$", path):
            return spec
    return PartitionSpec()


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A tree of shardings for a train state, or for any tree that holds parameters by their names.

    Args:
      tree: of arrays or shapes. mesh: from `make_mesh`.

    Returns:
      The same tree of `NamedSharding`; scalars are replicated.
    """

    def sharding(path, leaf):
        if not leaf.shape:
            return replicated(mesh)
        return NamedSharding(mesh, partition_spec(jax.tree_util.keystr(path, simple=True, separator="/")))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """A function to be jitted, with the activations within it split over a mesh by `ACTIVATION_RULES`."""

    @functools.wraps(function)
    def traced(*args, **kwargs):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(ACTIVATION_RULES):
            return function(*args, **kwargs)

    return traced
