"""Makes animations of images that appear pass by pass of the network, token by token or in groups of tokens."""

import numpy as np
from etils import epath

from rar_jax.generation.generator import Generator
from rar_jax.generation.painting import decode_known
from rar_jax.generation.pictures import SampleGrid
from rar_jax.images.files import write_animation
from rar_jax.progress import Progress
from rar_jax.sampling.options import Options
from rar_jax.sampling.paint import paint
from rar_jax.sampling.sampler import pad_numbers

# If there are more groups of tokens, each frame shows several passes. Verified images can take more passes than groups.
_PASSES = 64
# Largest numbers of rows and columns of an animation.
_GRID_SIZE = 4, 2


def animate(generator: Generator, labels: np.ndarray, options: Options, path: epath.PathLike, *, seed: int = 0) -> int:
    """Writes an animation of a few images of a job as they are sampled, pass by pass, one class per row.

    Args:
      generator: the model.
      labels: int [N], the labels of all images of the job.
      options: how images are sampled.
      path: .gif or .webp file.
      seed: seed of the job.

    Returns:
      The number of images in the animation.
    """
    sampler, grid = generator.sampler, SampleGrid(labels, generator.class_names, _GRID_SIZE)
    count = len(grid.numbers)
    numbers = pad_numbers(grid.numbers, sampler.batch_size(count, count))
    every = -(-len(options.plan(sampler.model.config).sizes) // _PASSES)
    frames, done = [], 0
    progress = Progress("animate", count * sampler.model.config.num_tokens, unit="token")
    for painted in paint(sampler, labels[numbers], numbers, seed, options, every):
        tokens, known, orders = (each[:count] for each in painted)
        frames.append(grid.draw(decode_known(generator.tokenizer, tokens, known, orders)))
        progress.update(int(known.sum()) - done)
        done = int(known.sum())
    progress.close()
    write_animation(path, frames)
    return count
