"""Makes animations of images that appear pass by pass of the network, token by token or in groups of tokens."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from rar_jax.data.tokenizers import Tokenizer
from rar_jax.generation.generator import Generator
from rar_jax.generation.painting import decode_known
from rar_jax.generation.pictures import SampleGrid
from rar_jax.images.files import write_animation
from rar_jax.sampling.options import Options

# If an image has more groups of tokens, each frame adds several.
_MAX_STEPS = 64
# Largest numbers of rows and columns of an animation.
_GRID_SIZE = 4, 2


def appearing(tokenizer: Tokenizer, tokens: np.ndarray, orders: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Decodes images after every pass of their sampling. Patches that have no code yet are grey.

    Args:
      tokenizer: the tokenizer that decodes the codes.
      tokens: int [N, T], codes in grid order.
      orders: int [N, T], each image's positions in the order in which they were sampled.
      sizes: the sizes of the groups of tokens that appear together.

    Returns:
      uint8 [F, N, H, W, 3], F at most 65 frames. The first is all grey, and the last shows the whole images.
    """
    count, num_tokens = tokens.shape
    drawn = np.cumsum([0, *sizes])
    known = drawn[np.linspace(0, len(sizes), min(len(sizes), _MAX_STEPS) + 1).round().astype(int)]
    there = np.argsort(orders, axis=1) < known[:, None, None]
    repeated = [np.broadcast_to(each, there.shape).reshape(-1, num_tokens) for each in (tokens, there, orders)]
    images = decode_known(tokenizer, *repeated)
    return images.reshape(len(known), count, *images.shape[1:])


def animate(
    generator: Generator,
    labels: np.ndarray,
    options: Options,
    path: epath.PathLike,
    *,
    seed: int = 0,
    batch_size: int = 256,
) -> int:
    """Writes an animation of a few images of a job as they are sampled, pass by pass, one class per row.

    Args:
      generator: the model.
      labels: int [N], the labels of all images of the job.
      options: how images are sampled.
      path: .gif or .webp file.
      seed: seed of the job.
      batch_size: batch size of the job.

    Returns:
      The number of images in the animation.
    """
    sampler, grid = generator.sampler, SampleGrid(labels, generator.class_names, _GRID_SIZE)
    numbers = grid.numbers
    batch_size = sampler.batch_size(max(batch_size, len(numbers)), len(labels))
    tokens, _ = sampler.decode_numbers(labels, numbers, batch_size, seed, options)
    orders, sizes = sampler.orders(numbers, seed, options), options.plan(sampler.model.config).sizes
    frames = appearing(generator.tokenizer, np.asarray(tokens)[: len(numbers)], orders, sizes)
    write_animation(path, [grid.draw(images) for images in frames])
    return len(numbers)
