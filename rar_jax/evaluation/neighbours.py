"""Nearest neighbours among features, for precision and recall and to find the nearest reference images.

Distances are computed by float32 matrix products on the first device, in blocks, so that 50,000 features need no
matrix of 50,000 x 50,000 distances.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rar_jax.errors import UserError

# The largest number of features in a block. A block of distances then takes 64 MB.
_BLOCK = 4096
# For each feature, the nearest candidates are kept in this many lanes and sorted at the end. Sorting all distances of a
# feature would take much longer than computing them.
_LANES = 128
# A squared distance below this fraction of |a|^2 + |b|^2 is a rounding error: the features are equal.
_ROUNDING = 1e-5
# Queries whose nearest neighbours are searched at once.
_QUERIES = 1000


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, k: int = 3, on_block: Callable[[int], None] = lambda distances: None
) -> tuple[float, float]:
    """Computes improved precision and recall (Kynkaanniemi et al., 2019), as the ADM evaluator defines them.

    The manifold of a set is the union of balls around its features. The radius of a ball is the distance to the k-th
    nearest other feature of the set. Precision is the share of samples in the manifold of the reference, and recall is
    the share of reference features in the manifold of the samples. ADM rounds distances to float16; here they are
    float32.

    Args:
      reference: float [N, F].
      samples: float [M, F].
      k: the neighbour that gives the radius; 3 in the papers.
      on_block: called with the number of distances of each block when it is done. The sum is `num_distances`.

    Returns:
      Precision and recall.

    Raises:
      UserError: a set has no more than k features.
    """
    for name, features in (("reference", reference), ("sample", samples)):
        if len(features) <= k:
            raise UserError(f"{len(features)} {name} images are too few for precision and recall: use at least {k + 1}")
    centre = np.mean(reference, axis=0, dtype=np.float64)
    reference, samples = _Blocks(reference, centre), _Blocks(samples, centre)
    radii_reference, radii_samples = _radii(reference, k, on_block), _radii(samples, k, on_block)
    sample_inside = [jnp.zeros(samples.size, bool) for _ in samples.blocks]
    reference_inside = [jnp.zeros(reference.size, bool) for _ in reference.blocks]
    for i, (block, radii) in enumerate(zip(samples.blocks, radii_samples, strict=True)):
        for j, (other, other_radii) in enumerate(zip(reference.blocks, radii_reference, strict=True)):
            sample_inside[i], reference_inside[j] = _covered(
                *(block, other, radii, other_radii, sample_inside[i], reference_inside[j])
            )
            reference_inside[j].block_until_ready()
            on_block(samples.size * reference.size)
    precision, recall = samples.join(sample_inside).mean(), reference.join(reference_inside).mean()
    return float(precision), float(recall)


def num_distances(num_reference: int, num_samples: int) -> int:
    """Returns the number of distances that `precision_recall` computes, including padding.

    Within a set, it computes the distance of two features once.
    """
    total, (n, m) = 0, (_layout(num) for num in (num_reference, num_samples))
    for blocks, size in (n, m):
        total += blocks * (blocks + 1) // 2 * size**2
    return total + n[0] * n[1] * m[0] * m[1]


def nearest(queries: np.ndarray, reference: np.ndarray, k: int) -> np.ndarray:
    """Finds the k reference features nearest to each query, nearest first.

    Args:
      queries: float [Q, F].
      reference: float [N, F].
      k: number of features to find, at most N.

    Returns:
      int [Q, k], indices into `reference`.
    """
    centre = np.mean(reference, axis=0, dtype=np.float64)
    blocks, found = _Blocks(reference, centre).blocks, []
    for start in range(0, len(queries), _QUERIES):
        few = _Blocks(queries[start : start + _QUERIES], centre)
        squared = jnp.concatenate([_squared_distances(few.blocks[0], block) for block in blocks], axis=1)
        found.append(few.join([jax.lax.top_k(-squared, k)[1]]))
    return np.concatenate(found)


class Neighbours(NamedTuple):
    """The nearest reference image of each of Q images.

    Attributes:
      places: int [Q], indices into the reference.
      distances: float64 [Q], the root of the mean squared difference of the values.
    """

    places: np.ndarray
    distances: np.ndarray


def nearest_images(queries: np.ndarray, reference: np.ndarray) -> Neighbours:
    """Finds the reference image nearest to each image.

    Args:
      queries: uint8, int or float [Q, ...].
      reference: the same [N, ...].
    """
    queries, reference = (x.reshape(len(x), -1) for x in (queries, reference))
    places = nearest(queries, reference, 1)[:, 0]
    # Exact, because the search rounds.
    difference = queries - reference[places].astype(np.float64)
    return Neighbours(places, np.sqrt(np.mean(difference * difference, axis=1)))


def distance_to_nearest(queries: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns how far each image is from the nearest reference image (`Neighbours.distances`)."""
    return nearest_images(queries, reference).distances


def _layout(count: int) -> tuple[int, int]:
    """Returns the number of blocks and their size, which is a multiple of the lanes and leaves little padding."""
    blocks = -(-count // _BLOCK)
    return blocks, -(-count // (blocks * _LANES)) * _LANES


class _Block(NamedTuple):
    """Features [size, F] and their squared norms [size], float32. Padding has an infinite norm, far from all."""

    features: jax.Array
    norms: jax.Array


class _Blocks:
    """Features on the device, in blocks of one size."""

    def __init__(self, features: np.ndarray, centre: np.ndarray):
        self.count = len(features)
        blocks, self.size = _layout(self.count)
        self.blocks = []
        for start in range(0, blocks * self.size, self.size):
            # Centred, because a common offset would cost digits of the differences.
            part = (features[start : start + self.size] - centre).astype(np.float32)
            padding = self.size - len(part)
            norms = np.pad(np.square(part).sum(axis=1), (0, padding), constant_values=np.inf)
            self.blocks.append(_Block(jnp.asarray(np.pad(part, ((0, padding), (0, 0)))), jnp.asarray(norms)))

    def join(self, parts: list[jax.Array]) -> np.ndarray:
        """Concatenates results of the blocks, which have a value for each feature, without the padding."""
        return np.concatenate(jax.device_get(parts))[: self.count]


def _squared_distances(a: _Block, b: _Block) -> jax.Array:
    """Computes |a|^2 + |b|^2 - 2ab: float32 [A, B]. It is exactly 0 for equal features and infinite for padding."""
    norms = a.norms[:, None] + b.norms
    # By default, a TPU or GPU rounds the inputs of products to bfloat16 or TF32.
    squared = norms - 2 * jnp.dot(a.features, b.features.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(squared <= _ROUNDING * norms, jnp.where(jnp.isinf(norms), jnp.inf, 0), squared)


def _smallest(values: jax.Array, best: list[jax.Array]) -> list[jax.Array]:
    """Merges values [A, B] into the smallest so far, lane by lane. best[n] [A, lanes] has the n-th smallest."""
    best = list(best)
    for lanes in jnp.split(values, values.shape[1] // _LANES, axis=1):
        for n, held in enumerate(best):
            best[n], lanes = jnp.minimum(held, lanes), jnp.maximum(held, lanes)
    return best


@functools.partial(jax.jit, donate_argnums=(2, 3))
def _update_both(a, b, best_a, best_b):
    squared = _squared_distances(a, b)
    # Transposed once, because reading lanes against the layout takes several times as long.
    transposed = jax.lax.optimization_barrier(squared.T)
    return _smallest(squared, best_a), _smallest(transposed, best_b)


@functools.partial(jax.jit, donate_argnums=1)
def _update(a, best):
    return _smallest(_squared_distances(a, a), best)


@jax.jit
def _last(best: list[jax.Array]) -> jax.Array:
    radii = jnp.sort(jnp.concatenate(best, axis=1), axis=1)[:, len(best) - 1]
    # Padded rows must not count as neighbours, so their radius covers nothing.
    return jnp.where(jnp.isinf(radii), -1, radii)


def _radii(features: _Blocks, k: int, on_block: Callable[[int], None]) -> list[jax.Array]:
    """Computes the squared distance of each feature to its k-th nearest other feature, by blocks."""
    # Keeps k + 1 distances, because each feature is its own nearest neighbour.
    best = [[jnp.full((features.size, _LANES), jnp.inf) for _ in range(k + 1)] for _ in features.blocks]
    for i, block in enumerate(features.blocks):
        best[i] = _update(block, best[i])
        # Waits for the block, because `on_block` must not be called when it is only dispatched.
        jax.block_until_ready(best[i])
        on_block(features.size**2)
        for j in range(i + 1, len(features.blocks)):
            best[i], best[j] = _update_both(block, features.blocks[j], best[i], best[j])
            jax.block_until_ready(best[j])
            on_block(features.size**2)
    return [_last(each) for each in best]


@jax.jit
def _covered(a, b, radii_a, radii_b, a_inside, b_inside):
    """Marks the features of each block that are within the radius of a feature of the other block."""
    squared = _squared_distances(a, b)
    a_inside |= (squared <= radii_b).any(axis=1)
    b_inside |= (squared <= radii_a[:, None]).any(axis=0)
    return a_inside, b_inside
