"""Partition rules, which shard the axes of parameters and activations over the axes of the mesh."""

import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rar_jax.parallel.mesh import AXES, replicated

_WEIGHTS = ("fsdp", "tensor")

# Patterns of parameter paths; the first match wins. Block parameters have a leading layer axis. Parameters that match
# no pattern (biases, norms, the cls token) are replicated. The kernels of the MLP and of the attention's output
# projection are sharded over `tensor` as they are used, by hidden units and by heads. The output axis of the qkv kernel
# holds q, k and v one after the other, so a contiguous part of it does not hold q, k and v of the same heads. Therefore
# its input axis is sharded, and each layer redistributes the kernel by heads. All other parameters are gathered over
# both axes where they are used.
PARAMETER_RULES = (
    (r"blocks/mlp/fc1/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks/(mlp/fc2|attention/proj)/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"blocks/.*/kernel", PartitionSpec(None, _WEIGHTS, None)),
    (r"(head_modulation|lm_head)/kernel", PartitionSpec(_WEIGHTS, None)),
    (r"embeddings/embedding|(position|target_aware|step)_embedding", PartitionSpec(None, _WEIGHTS)),
)

# Logical axes of activations, as named by `models.rar.constrain`. Between the matrix products, every device has its own
# images, also along `tensor`, so that no work is done twice. (Sequence parallelism does the same with tokens, but our
# sequences have an odd length.) For products with sharded heads or hidden units, the devices along `tensor` gather
# their images, and add up the results afterwards.
ACTIVATION_RULES = (
    ("batch", AXES),
    ("shared_batch", ("data", "fsdp")),
    ("heads", "tensor"),
    ("hidden", "tensor"),
    # Axes of kernels, which `models.rar.gather` gathers before a product.
    ("width", "fsdp"),
    ("inputs", _WEIGHTS),
)


def partition_spec(path: str) -> PartitionSpec:
    """Returns the sharding of a parameter by the end of its path.

    The moments of the optimizer have paths with the same ends, so they are sharded like their parameters.
    """
    for pattern, spec in PARAMETER_RULES:
        if re.search(rf"(^|/)({pattern})$", path):
            return spec
    return PartitionSpec()


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the shardings of a train state, or of any tree that holds parameters under their names.

    Args:
      tree: arrays or shapes.
      mesh: from `make_mesh`.

    Returns:
      A tree of the same structure with a `NamedSharding` for each leaf. Scalars are replicated.
    """

    def sharding(path, leaf):
        if not leaf.shape:
            return replicated(mesh)
        return NamedSharding(mesh, partition_spec(jax.tree_util.keystr(path, simple=True, separator="/")))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """Returns a function to be jitted, whose activations are sharded over a mesh by `ACTIVATION_RULES`."""

    @functools.wraps(function)
    def traced(*args, **kwargs):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(ACTIVATION_RULES):
            return function(*args, **kwargs)

    return traced
