"""Partition rules: which axis of which parameter is split over `fsdp`."""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rar_jax.parallel.mesh import replicated

# Patterns of parameter paths, first match wins. Block parameters have a leading layer axis. Kernels are split on the
# last axis or on that of the model's width; what matches nothing (biases, norms, the cls token) is replicated.
PARTITION_RULES = (
    (r"blocks/.*/kernel", PartitionSpec(None, None, "fsdp")),
    (r"(head_modulation|lm_head)/kernel", PartitionSpec("fsdp", None)),
    (r"embeddings/embedding|(position|target_aware|step)_embedding", PartitionSpec(None, "fsdp")),
)


def partition_spec(path: str) -> PartitionSpec:
    """The rule for a parameter, found anywhere in a path, so that optimizer moments follow their parameters."""
    for pattern, spec in PARTITION_RULES:
        if re.search(rf"(^|/)({pattern})$", path):
            return spec
    return PartitionSpec()


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A tree of shardings for a train state, or for any tree that holds parameters by their names.

    Args:
      tree: of arrays or shapes. mesh: with an axis `fsdp`.

    Returns:
      The same tree of `NamedSharding`; scalars are replicated.
    """

    def sharding(path, leaf):
        if not leaf.shape:
            return replicated(mesh)
        return NamedSharding(mesh, partition_spec(jax.tree_util.keystr(path, simple=True, separator="/")))

    return jax.tree_util.tree_map_with_path(sharding, tree)
