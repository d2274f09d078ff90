"""Sampling any number of images in batches of one shape."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rar_jax.models.rar import RAR
from rar_jax.parallel.mesh import AXES, fetch, host_rows, put_batch, replicated
from rar_jax.sampling.decode import decode, prepare, random_orders
from rar_jax.sampling.options import Options

# A key holds 32 bits of a seed.
MAX_SEED = 2**32 - 1

_SHOWN_CLASSES = 10

_random_orders = jax.jit(random_orders, static_argnames="model")


@functools.cache
def jit_decode(model: RAR, mesh: Mesh) -> Callable[..., jax.Array]:
    """`decode` of (params, labels, rows, its other arguments) on a mesh, jitted.

    Each device has all the weights and decodes images of its own: nothing is sent. Left to the partitioner, the rows
    that guidance adds would lie elsewhere than those they are for.
    """
    own, shared = PartitionSpec(AXES), PartitionSpec()

    def decode_own(params, labels, rows, rest):
        return decode(model, params, labels, rows=rows, **rest)

    specs = {"in_specs": (shared, own, own, shared), "out_specs": own}
    # Nothing is summed over devices, which is what the check is for.
    return jax.jit(jax.shard_map(decode_own, mesh=mesh, check_vma=False, **specs))


@functools.cache
def _preparation(model: RAR, mesh: Mesh):
    transposed = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(functools.partial(prepare, model, transposed=transposed), out_shardings=replicated(mesh))


class Sampler:
    """A model whose weights are laid out for decoding; compiled once for each batch size and kind of options.

    Attributes:
      model: the network.
      params: its weights, as `sampling.decode.prepare` lays them out.
      mesh: the devices that share each batch; the weights are on all of them.
    """

    def __init__(self, model: RAR, params: dict[str, Any], mesh: Mesh):
        """Lays out `params`, as trained; they can be dropped afterwards."""
        self.model = model
        self.mesh = mesh
        self.params = _preparation(model, mesh)(params)

    def decode(self, labels: np.ndarray, rows: np.ndarray, seed: int, options: Options) -> jax.Array:
        """Samples a batch; returns while the devices are at work.

        An image depends on (params, seed, its row, its label) alone; at other batch sizes or numbers of devices it can
        differ where products are rounded differently.

        Args:
          labels: int32 [B], 0..C-1; B is a multiple of the devices.
          rows: int32 [B], each image's number in the job.
          seed: of all draws of the job.
          options: how.

        Returns:
          int32 [B, T], codes in row-major grid order.

        Raises:
          ValueError: the model's grid does not admit the scan order, or the seed is negative or of more than 32 bits.
        """
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed {seed} must be from 0 to {MAX_SEED}")
        rest = {"key": jax.random.key(seed)} | options.arguments(self.model)
        held = host_rows(self.mesh, len(rows))
        batch = put_batch({"labels": labels[held], "rows": rows[held]}, self.mesh)
        return jit_decode(self.model, self.mesh)(self.params, batch["labels"], batch["rows"], rest)

    def batch_size(self, wanted: int, images: int) -> int:
        """The batch size for so many images: no more than needed, rounded up to a multiple of the devices.

        Raises:
          ValueError: the size wanted is not positive.
        """
        if wanted < 1:
            raise ValueError(f"batch size {wanted} must be at least 1")
        return -(-min(wanted, images) // self.mesh.size) * self.mesh.size

    def decode_rows(
        self, labels: np.ndarray, rows: np.ndarray, batch_size: int, seed: int, options: Options
    ) -> jax.Array:
        """As `decode`, of some images of a job.

        Args:
          labels: int32 [N], of the whole job.
          rows: int [<= B], which of its images.
          batch_size: B; further rows are made up.
          seed, options: see `decode`.

        Returns:
          int32 [B, T], the rows asked for in front.
        """
        rows = np.pad(np.asarray(rows, np.int32), (0, batch_size - len(rows)), mode="edge")
        return self.decode(labels[rows], rows, seed, options)

    def orders(self, rows: np.ndarray, seed: int, options: Options) -> np.ndarray:
        """The order in which each image's tokens are decoded: int32 [B, T] for rows [B], as `decode` has them."""
        positions = options.positions(self.model)
        if positions is None:
            return np.asarray(_random_orders(self.model, jax.random.key(seed), jnp.asarray(rows, jnp.int32)))
        return np.broadcast_to(positions, (len(rows), self.model.num_tokens))


def spread_classes(num_classes: int) -> np.ndarray:
    """The classes that a picture shows when none are named: up to ten, spread over all; int [N]."""
    return np.linspace(0, num_classes - 1, min(num_classes, _SHOWN_CLASSES)).round().astype(int)


def check_labels(labels: Sequence[int], num_classes: int) -> np.ndarray:
    """Labels as int32 [N].

    Raises:
      ValueError: there are none, or one is not a class 0..C-1.
    """
    if np.ndim(labels) != 1 or not len(labels):
        raise ValueError(f"classes {labels} must be a list of at least one class")
    for label in labels:
        if not 0 <= label < num_classes:
            raise ValueError(f"class {label} is not in 0..{num_classes - 1}, the classes of this model")
    return np.asarray(labels, np.int32)


def sample_tokens(
    sampler: Sampler,
    labels: Sequence[int],
    options: Options,
    *,
    seed: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """Samples one image a label, image k as row k.

    Args:
      sampler: of the model.
      labels: N classes.
      options: how.
      seed: of all draws.
      batch_size: images decoded at once; rounded up to a multiple of the devices, and no more than needed. The last
        batch is padded to the shape of the others.
      on_batch: told the number of images after each batch.

    Returns:
      int32 [N, T], codes in row-major grid order.

    Raises:
      ValueError: a label or the batch size cannot be used, or the grid does not admit the scan order.
    """
    labels = check_labels(labels, sampler.model.num_classes)
    batch_size = sampler.batch_size(batch_size, len(labels))
    batches = []
    for start in range(0, len(labels), batch_size):
        wanted = np.arange(start, min(start + batch_size, len(labels)))
        tokens = sampler.decode_rows(labels, wanted, batch_size, seed, options)
        batches.append(fetch(tokens)[: len(wanted)])
        on_batch(len(wanted))
    return np.concatenate(batches)
