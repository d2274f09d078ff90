"""Samples any number of images, in batches of one shape."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rar_jax.errors import UserError
from rar_jax.models.rar import RAR
from rar_jax.parallel.mesh import AXES, PyTree, fetch, host_rows, put_batch, replicated
from rar_jax.sampling.cached import prepare
from rar_jax.sampling.decode import decode
from rar_jax.sampling.drawing import Batch, image_orders
from rar_jax.sampling.groups import Plan
from rar_jax.sampling.likelihood import token_log_likelihoods
from rar_jax.sampling.options import Options
from rar_jax.sampling.pace import Pace

_SHOWN_CLASSES = 10

jit_image_orders = jax.jit(image_orders, static_argnames=("model", "plan"))


@functools.cache
def jit_decode(model: RAR, plan: Plan, mesh: Mesh) -> Callable[..., tuple[jax.Array, Pace | None]]:
    """Jits `decode` on a mesh, as a function of (params, batch, options).

    Each device has all the weights and decodes its own images, so that nothing is communicated. The partitioner would
    place the sequences that guidance adds on other devices than their images.
    """
    own, shared = PartitionSpec(AXES), PartitionSpec()

    def run(params, batch, options):
        return decode(model, params, batch, options, plan)

    # The check concerns sums over devices; this program has none.
    specs = {"in_specs": (shared, own, shared), "out_specs": own}
    return jax.jit(jax.shard_map(run, mesh=mesh, check_vma=False, **specs))


@functools.cache
def _jit_likelihood(model: RAR, mesh: Mesh) -> Callable[..., jax.Array]:
    own, shared = PartitionSpec(AXES), PartitionSpec()

    def run(params, images):
        return token_log_likelihoods(model, params, **images)

    return jax.jit(jax.shard_map(run, mesh=mesh, check_vma=False, in_specs=(shared, own), out_specs=own))


@functools.cache
def _jit_prepare(model: RAR, mesh: Mesh):
    few_rows = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(functools.partial(prepare, model, few_rows=few_rows), out_shardings=replicated(mesh))


class Sampler:
    """A model whose weights are laid out for decoding. It compiles once for each batch size and kind of options.

    Attributes:
      model: the network.
      params: its weights, as laid out by `sampling.cached.prepare`.
      mesh: the devices that share each batch; each has all the weights.
    """

    def __init__(self, model: RAR, params: dict[str, Any], mesh: Mesh):
        """Lays out `params`, as trained. The caller may drop them afterwards."""
        self.model = model
        self.mesh = mesh
        self.params = _jit_prepare(model, mesh)(params)

    def decode(
        self,
        labels: np.ndarray,
        numbers: np.ndarray,
        seed: int,
        options: Options,
        edited: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[jax.Array, Pace | None]:
        """Samples a batch, or draws some tokens of its images again. Returns while the devices still compute.

        An image depends on (params, seed, its number, its label) alone. With another batch size or number of devices it
        can differ where products are rounded differently.

        Args:
          labels: int32 [B], 0..C-1; B is a multiple of the number of devices.
          numbers: int32 [B], each image's number in the job.
          seed: seed of all draws of the job.
          options: how images are sampled.
          edited: tokens int32 [B, T] in row-major grid order and bool [B, T], which of them to draw; None to draw all.

        Returns:
          int32 [B, T], codes in row-major grid order; and how the images advanced, if they are verified or edited.

        Raises:
          UserError: an option does not fit the model, or the seed is not from 0 to `options.MAX_SEED`.
        """
        plan = options.plan(self.model.config, one_size=edited is not None)
        batch = self.put(Batch(labels, numbers, *(edited or ())))
        return jit_decode(self.model, plan, self.mesh)(self.params, batch, options.traced(self.model.config, seed))

    def put(self, images: PyTree) -> PyTree:
        """Puts arrays [B, ...] on the devices. Each device gets its own images."""
        held = host_rows(self.mesh, len(jax.tree.leaves(images)[0]))
        return put_batch(jax.tree.map(lambda each: each[held], images), self.mesh)

    def log_likelihoods(self, labels: np.ndarray, tokens: np.ndarray, orders: np.ndarray) -> jax.Array:
        """Computes log p of each token given the class and the tokens before it: float32 [B, T], nats, in grid order.

        Args:
          labels: int32 [B], 0..C; B is a multiple of the number of devices.
          tokens: int32 [B, T], codes in row-major grid order.
          orders: int32 [B, T], positions in the order visited.
        """
        images = {"labels": labels, "tokens": tokens, "orders": orders}
        return _jit_likelihood(self.model, self.mesh)(self.params, self.put(images))

    def batch_size(self, wanted: int, images: int) -> int:
        """Returns the batch size for a number of images: at most `images`, rounded up to a multiple of the devices.

        Raises:
          UserError: the wanted size is not positive.
        """
        if wanted < 1:
            raise UserError(f"batch size {wanted} must be at least 1")
        return -(-min(wanted, images) // self.mesh.size) * self.mesh.size

    def orders(self, numbers: np.ndarray, seed: int, options: Options) -> np.ndarray:
        """Returns the order in which `decode` decodes each image's tokens: int32 [B, T] for numbers [B]."""
        config, numbers = self.model.config, jnp.asarray(numbers, jnp.int32)
        # Orders do not depend on labels.
        batch = Batch(jnp.zeros_like(numbers), numbers)
        return np.asarray(jit_image_orders(self.model, batch, options.traced(config, seed), options.plan(config)))


def spread_classes(num_classes: int) -> np.ndarray:
    """Returns the default classes of a sample grid: up to ten, evenly spaced, int [N]."""
    return np.linspace(0, num_classes - 1, min(num_classes, _SHOWN_CLASSES)).round().astype(int)


def interleaved_labels(num_images: int, num_classes: int) -> np.ndarray:
    """Returns labels with all classes in turn, int32 [N]. Fewer images than classes have evenly spaced classes."""
    numbers = np.arange(num_images, dtype=np.int32)
    return numbers * num_classes // num_images if num_images < num_classes else numbers % num_classes


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


def pad_numbers(numbers: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the numbers of some images, padded to the batch size with copies of the last one: int32 [B]."""
    return np.pad(np.asarray(numbers, np.int32), (0, batch_size - len(numbers)), mode="edge")


def padded_batches(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the numbers of the images of each batch, and the same padded to the batch size with the last one.

    Args:
      count: number of images.
      batch_size: B.

    Yields:
      int32 [<= B] and int32 [B].
    """
    for start in range(0, count, batch_size):
        numbers = np.arange(start, min(start + batch_size, count), dtype=np.int32)
        yield numbers, pad_numbers(numbers, batch_size)


def sample_tokens(
    sampler: Sampler,
    labels: Sequence[int],
    options: Options,
    *,
    seed: int,
    batch_size: int,
    edited: tuple[np.ndarray, np.ndarray] | None = None,
    on_batch: Callable[[int], None] = lambda images: None,
    on_pace: Callable[[Pace], None] = lambda pace: None,
) -> np.ndarray:
    """Samples one image for each label, or draws some tokens of images again. Image k has number k.

    Args:
      sampler: the model.
      labels: N classes.
      options: how images are sampled.
      seed: seed of all draws.
      batch_size: images decoded at once, rounded up to a multiple of the devices and at most N. The last batch is
        padded to the shape of the others.
      edited: tokens int32 [N, T] in row-major grid order and bool [N, T], which of them to draw; None to draw all.
      on_batch: called with the number of images after each batch.
      on_pace: called with how the images of each batch advanced, NumPy arrays, if they are verified or edited.

    Returns:
      int32 [N, T], codes in row-major grid order.

    Raises:
      UserError: a label or the batch size is out of range, or the scan order is not defined for the grid.
    """
    labels = check_labels(labels, sampler.model.config.num_classes)
    batch_size = sampler.batch_size(batch_size, len(labels))
    batches = []
    for numbers, padded in padded_batches(len(labels), batch_size):
        some = None if edited is None else tuple(each[padded] for each in edited)
        tokens, pace = sampler.decode(labels[padded], padded, seed, options, some)
        batches.append(fetch(tokens)[: len(numbers)])
        if pace is not None:
            on_pace(Pace(*(fetch(each)[: len(numbers)] for each in pace)))
        on_batch(len(numbers))
    return np.concatenate(batches)
