"""Batches of images for training a tokenizer, and for evaluating it. They do not depend on the number of processes."""

import concurrent.futures
import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
from PIL import Image

from rar_jax.data.decoding import begin_worker
from rar_jax.data.loader import READ
from rar_jax.data.pictures import center_square, random_square, read_picture
from rar_jax.data.shuffle import shuffled
from rar_jax.data.sources import Source
from rar_jax.errors import UserError

# {"image": uint8 [B, H, W, 3]}
ImageBatch = dict[str, np.ndarray]


class Pictures(Protocol):
    """RGB images of any size, in a fixed order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image: ...


class SourcePictures:
    """The decoded images of a source, or some of them."""

    def __init__(self, source: Source, numbers: Sequence[int] | None = None):
        """Takes the images with these numbers, by default all."""
        self._source = source
        self._numbers = np.arange(len(source)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Image.Image:
        example = self._source[int(self._numbers[index])]
        data, _ = example.read()
        try:
            return read_picture(data)
        except UserError as error:
            raise UserError(f"{example.name}: {error}; repair it, or put another image in its place") from None


class ArrayPictures:
    """Images that are in memory: uint8 [N, H, W, 3]."""

    def __init__(self, images: np.ndarray):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index])


class Crops(NamedTuple):
    """How training images are cut; see `pictures.random_square`."""

    side: int
    min_crop: float
    flip: bool


class TrainImages:
    """A Grain source. Element i holds this process's rows of the i-th global batch of the run.

    Each epoch visits all images in an order drawn from (seed, epoch) and leaves out its last partial batch. The crop of
    an image is drawn from (seed, i, row).
    """

    def __init__(
        self, pictures: Pictures, crops: Crops, batch_size: int, num_batches: int, seed: int, rows: np.ndarray
    ):
        """Prepares to read; reads nothing yet.

        Args:
          pictures: the training images.
          crops: how a square is cut from an image.
          batch_size: B, the size of the global batch.
          num_batches: number of batches of the run.
          seed: seed of the orders and crops.
          rows: int [R], the rows of each global batch that this process reads (`parallel.mesh.host_rows`).
        """
        self._pictures, self._crops = pictures, crops
        self._batch_size, self._num_batches, self._seed, self._rows = batch_size, num_batches, seed, rows

    @property
    def num_images(self) -> int:
        """The number of training images."""
        return len(self._pictures)

    def __len__(self) -> int:
        # Counts all epochs: Grain wraps indices around the length, which would repeat the first epoch.
        return self._num_batches

    def __getitem__(self, index: int) -> ImageBatch:
        epoch, batch = divmod(int(index), len(self._pictures) // self._batch_size)
        chosen = shuffled(batch * self._batch_size + self._rows, len(self._pictures), self._seed, epoch)
        draws = [np.random.default_rng((self._seed, int(index), int(row))) for row in self._rows]
        cut = [random_square(self._pictures[i], *self._crops, rng) for i, rng in zip(chosen, draws, strict=True)]
        return {"image": np.stack(cut)}


class ImageBatches:
    """An iterator over the batches of a run. It reads ahead; its state is the position of the next batch.

    Attributes:
      source: the batches, by number.
    """

    def __init__(self, source: TrainImages, workers: int = 0):
        """Starts with the first batch.

        Args:
          source: the batches.
          workers: number of processes that decode and cut images; 0 for two threads of this process.
        """
        self.source = source
        self._workers = workers
        self._iterator = None
        self.set_state({"next_index": 0})

    def __next__(self) -> ImageBatch:
        batch = next(self._iterator)
        self._next += 1
        # Grain's workers pass arrays in shared memory, which a thread frees after they are dropped. Python ends without
        # waiting for that thread, and would report the last array as leaked.
        return {name: np.array(array) for name, array in batch.items()} if self._workers else batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position of the next batch, which is the same for any number of workers."""
        return {"next_index": self._next, "num_images": self.source.num_images}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues at a position.

        Raises:
          UserError: the position was saved with another number of images.
        """
        if state.get("num_images", self.source.num_images) != self.source.num_images:
            raise UserError(
                f"the run has {state['num_images']} training images, and config.data.images now has "
                f"{self.source.num_images}: resume with the same images"
            )
        self.close()
        self._next = state["next_index"]
        batches = grain.MapDataset.source(self.source)[self._next :]
        batches = batches.to_iter_dataset(READ)
        if self._workers:
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(self._workers), worker_init_fn=_begin_worker)
        self._iterator = iter(batches)

    def close(self) -> None:
        """Ends the workers."""
        if self._iterator is not None:
            self._iterator.close()


def _begin_worker(number: int, count: int) -> None:
    del number, count
    begin_worker()
    # A preempted job's signal can reach all of its processes. The main one saves, and may need more batches until then.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def heldout_batches(
    pictures: Pictures, side: int, batch_size: int, num_images: int, rows: np.ndarray
) -> Iterator[ImageBatch]:
    """Yields batches of centre crops of some images, drawn from the whole set, the same ones on each call.

    Args:
      pictures: the images.
      side: side of the crops in pixels.
      batch_size: B, the size of the global batch.
      num_images: number of images, at most all.
      rows: int [R], the rows of each global batch that this process reads (`parallel.mesh.host_rows`).

    Yields:
      {"image": uint8 [R, side, side, 3]}. The last batch is padded with the first of the chosen images.
    """
    with concurrent.futures.ThreadPoolExecutor() as threads:
        for start in range(0, num_images, batch_size):
            numbers = start + rows
            chosen = shuffled(np.where(numbers < num_images, numbers, 0), len(pictures), seed=0, epoch=0)
            # Pillow releases the interpreter lock while it decodes.
            yield {"image": np.stack([*threads.map(lambda i: center_square(pictures[i], side), chosen)])}
