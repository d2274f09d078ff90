"""Samples any number of images, in batches of one shape."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rar_jax.errors import UserError
from rar_jax.models.rar import RAR
from rar_jax.parallel.mesh import AXES, fetch, host_rows, put_batch, replicated
from rar_jax.sampling.decode import decode, prepare, random_orders
from rar_jax.sampling.options import MAX_SEED, Options

_SHOWN_CLASSES = 10

_random_orders = jax.jit(random_orders, static_argnames="model")


@functools.cache
def jit_decode(model: RAR, mesh: Mesh) -> Callable[..., jax.Array]:
    """Returns `decode` as a jitted function of (params, labels, numbers, its other arguments) on a mesh.

    Each device has all the weights and decodes its own images, so that nothing is communicated. The partitioner would
    place the sequences that guidance adds on other devices than their images.
    """
    own, shared = PartitionSpec(AXES), PartitionSpec()

    def decode_own(params, labels, numbers, rest):
        return decode(model, params, labels, numbers=numbers, **rest)

    specs = {"in_specs": (shared, own, own, shared), "out_specs": own}
    # The check concerns sums over devices, and this program has none.
    return jax.jit(jax.shard_map(decode_own, mesh=mesh, check_vma=False, **specs))


@functools.cache
def _jit_prepare(model: RAR, mesh: Mesh):
    few_sequences = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(functools.partial(prepare, model, few_sequences=few_sequences), out_shardings=replicated(mesh))


class Sampler:
    """A model whose weights are laid out for decoding. It compiles once for each batch size and kind of options.

    Attributes:
      model: the network.
      params: its weights, as laid out by `sampling.decode.prepare`.
      mesh: the devices that share each batch; each has all the weights.
    """

    def __init__(self, model: RAR, params: dict[str, Any], mesh: Mesh):
        """Lays out `params`, as trained. The caller may drop them afterwards."""
        self.model = model
        self.mesh = mesh
        self.params = _jit_prepare(model, mesh)(params)

    def decode(self, labels: np.ndarray, numbers: np.ndarray, seed: int, options: Options) -> jax.Array:
        """Samples a batch. Returns while the devices still compute.

        An image depends on (params, seed, its number, its label) alone. With another batch size or number of devices it
        can differ where products are rounded differently.

        Args:
          labels: int32 [B], 0..C-1; B is a multiple of the number of devices.
          numbers: int32 [B], each image's number in the job.
          seed: seed of all draws of the job.
          options: how images are sampled.

        Returns:
          int32 [B, T], codes in row-major grid order.

        Raises:
          UserError: the scan order is not defined for the model's grid, or the seed is not from 0 to `MAX_SEED`.
        """
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"seed {seed} must be from 0 to {MAX_SEED}")
        rest = {"key": jax.random.key(seed)} | options.arguments(self.model.config)
        held = host_rows(self.mesh, len(numbers))
        batch = put_batch({"labels": labels[held], "numbers": numbers[held]}, self.mesh)
        return jit_decode(self.model, self.mesh)(self.params, batch["labels"], batch["numbers"], rest)

    def batch_size(self, wanted: int, images: int) -> int:
        """Returns the batch size for a number of images: at most `images`, rounded up to a multiple of the devices.

        Raises:
          UserError: the wanted size is not positive.
        """
        if wanted < 1:
            raise UserError(f"batch size {wanted} must be at least 1")
        return -(-min(wanted, images) // self.mesh.size) * self.mesh.size

    def decode_numbers(
        self, labels: np.ndarray, numbers: np.ndarray, batch_size: int, seed: int, options: Options
    ) -> jax.Array:
        """Samples some images of a job in one batch; see `decode`.

        Args:
          labels: int32 [N], the labels of all images of the job.
          numbers: int [<= B], the images to sample.
          batch_size: B. The batch is padded to it with copies of the last image.
          seed, options: see `decode`.

        Returns:
          int32 [B, T], the wanted images first.
        """
        numbers = np.pad(np.asarray(numbers, np.int32), (0, batch_size - len(numbers)), mode="edge")
        return self.decode(labels[numbers], numbers, seed, options)

    def orders(self, numbers: np.ndarray, seed: int, options: Options) -> np.ndarray:
        """Returns the order in which `decode` decodes each image's tokens: int32 [B, T] for numbers [B]."""
        positions = options.positions(self.model.config)
        if positions is None:
            return np.asarray(_random_orders(self.model, jax.random.key(seed), jnp.asarray(numbers, jnp.int32)))
        return np.broadcast_to(positions, (len(numbers), self.model.config.num_tokens))


def spread_classes(num_classes: int) -> np.ndarray:
    """Returns the default classes of a sample grid: up to ten, evenly spaced, int [N]."""
    return np.linspace(0, num_classes - 1, min(num_classes, _SHOWN_CLASSES)).round().astype(int)


def check_labels(labels: Sequence[int], num_classes: int) -> np.ndarray:
    """Returns labels as int32 [N].

    Raises:
      UserError: there are no labels, or one is not a class 0..C-1.
    """
    if np.ndim(labels) != 1 or not len(labels):
        raise UserError(f"classes {labels} must be a list of at least one class")
    for label in labels:
        if not 0 <= label < num_classes:
            raise UserError(f"class {label} is not in 0..{num_classes - 1}, the classes of this model")
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
    """Samples one image for each label. Image k has number k.

    Args:
      sampler: the model.
      labels: N classes.
      options: how images are sampled.
      seed: seed of all draws.
      batch_size: images decoded at once, rounded up to a multiple of the devices and at most N. The last batch is
        padded to the shape of the others.
      on_batch: called with the number of images after each batch.

    Returns:
      int32 [N, T], codes in row-major grid order.

    Raises:
      UserError: a label or the batch size is out of range, or the scan order is not defined for the grid.
    """
    labels = check_labels(labels, sampler.model.config.num_classes)
    batch_size = sampler.batch_size(batch_size, len(labels))
    batches = []
    for start in range(0, len(labels), batch_size):
        numbers = np.arange(start, min(start + batch_size, len(labels)))
        tokens = sampler.decode_numbers(labels, numbers, batch_size, seed, options)
        batches.append(fetch(tokens)[: len(numbers)])
        on_batch(len(numbers))
    return np.concatenate(batches)
