"""Samples images of chosen classes and draws a grid of them with one class per row."""

from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from rar_jax.checkpoints.weights import split_step
from rar_jax.data.class_names import class_label
from rar_jax.errors import UserError
from rar_jax.generation.generator import Generator
from rar_jax.generation.job import run_job
from rar_jax.images.files import image_grid, write_png
from rar_jax.progress import Progress
from rar_jax.sampling.options import Options
from rar_jax.sampling.pace import Pace
from rar_jax.sampling.sampler import interleaved_labels, sample_tokens, spread_classes

GRID = "grid.png"
# Default number of images per class.
PER_CLASS = 8
# Largest numbers of rows and columns of the grid. A larger grid would not be legible.
GRID_SIZE = 32, 16


def samples_folder(checkpoint: epath.PathLike) -> epath.Path:
    """Returns the default folder of samples: samples/ in the folder of the run, or here if the checkpoint is a file."""
    folder, _ = split_step(checkpoint)
    return folder / "samples" if folder.is_dir() else epath.Path("samples")


def choose_labels(generator: Generator, classes: Sequence[int | str] = (), num: int | None = None) -> np.ndarray:
    """Returns the label of each image to sample, int32 [N].

    The classes are interleaved, because the Inception Score averages over splits. If there are more classes than
    images, evenly spaced classes are chosen.

    Args:
      generator: the model.
      classes: names or indices. By default they are all classes, or ten evenly spaced ones if `num` is not given.
      num: number of images. By default it is 8 for each class.

    Raises:
      UserError: there is no such class.
    """
    if not len(classes):
        total = generator.sampler.model.config.num_classes
        classes = spread_classes(total) if num is None else range(total)
    labels = generator.labels(classes)
    return labels[interleaved_labels(num or PER_CLASS * len(labels), len(labels))]


class SampleGrid:
    """A grid of some images of a job. Each row shows images of one class, and the name of the class to their left.

    Attributes:
      numbers: int [n], the numbers of the images in the grid, row by row.
    """

    def __init__(self, labels: np.ndarray, names: Sequence[str] | None, size: tuple[int, int] = GRID_SIZE):
        """Chooses the images.

        Args:
          labels: int [N], the labels of all images of the job.
          names: the names of the classes, in the order of the labels, or None if they are not known.
          size: the largest numbers of rows and columns.
        """
        rows, columns = size
        self._rows = [np.flatnonzero(labels == label)[:columns] for label in dict.fromkeys(labels.tolist())][:rows]
        self._names = [class_label(labels[row[0]], names) for row in self._rows]
        self.numbers = np.concatenate(self._rows)

    def draw(self, images: np.ndarray) -> np.ndarray:
        """Returns the grid, uint8 [height, width, 3], of the images with these `numbers`, uint8 [n, H, W, 3]."""
        columns = max(map(len, self._rows))
        cells = np.full((len(self._rows), columns, *images.shape[1:]), 255, np.uint8)
        cells[np.arange(columns) < np.array([[len(row)] for row in self._rows])] = images
        return image_grid(cells.reshape(-1, *images.shape[1:]), columns, self._names)


def sample_pictures(
    generator: Generator,
    labels: np.ndarray,
    options: Options,
    folder: epath.PathLike,
    *,
    seed: int = 0,
    batch_size: int = 256,
    outputs: Sequence[str] = (),
    process_index: int = 0,
    process_count: int = 1,
    on_pace: Callable[[Pace], None] = lambda pace: None,
) -> bool:
    """Samples images and draws a grid of some of them. With `outputs`, a job writes all of them to files.

    Args:
      generator: the model.
      labels: int [N], the label of each image.
      options: how images are sampled.
      folder: folder of grid.png and of the job.
      seed, batch_size: see `Generator.generate`.
      outputs, process_index, process_count: see `generation.job.run_job`. Without outputs there is one process.
      on_pace: see `sampling.sampler.sample_tokens`.

    Returns:
      Whether the job is complete: False in a process that leaves the grid to process 0.

    Raises:
      UserError: an option cannot be used, the folder has another job, or images would be in no file.
      OSError: the disk is full or broken. The same call resumes a job.
    """
    grid = SampleGrid(labels, generator.class_names)
    if not outputs and len(grid.numbers) < len(labels):
        raise UserError(
            f"the grid would show {len(grid.numbers)} of the {len(labels)} images: add --npz or --png to keep all, or "
            "sample fewer with --num"
        )
    if outputs:
        images = run_job(
            generator, labels, folder, seed=seed, options=options, batch_size=batch_size, outputs=outputs,
            shown=grid.numbers, process_index=process_index, process_count=process_count, on_pace=on_pace,
        )  # fmt: skip
        if images is None:
            return False
    else:
        progress = Progress("sample", len(labels), unit="image")
        tokens = sample_tokens(
            generator.sampler, labels, options, seed=seed, batch_size=batch_size, on_batch=progress.update,
            on_pace=on_pace,
        )  # fmt: skip
        progress.close()
        images = generator.tokenizer.decode(tokens[grid.numbers])
    write_png(epath.Path(folder) / GRID, grid.draw(images))
    return True
