"""Batches for training and evaluation. They do not depend on the number of processes."""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from rar_jax.data.records import HostBatch, Records
from rar_jax.data.shuffle import chosen_crops, shuffled

# Enough to stay ahead of the training steps. Each thread prepares one whole batch at a time.
READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
# Number of batches that are put on the devices ahead of the one in use.
_ON_DEVICE = 2


class TrainBatches:
    """A Grain source. Element i holds this process's rows of the i-th global batch of the run.

    Each epoch visits all images in an order drawn from (seed, epoch) and leaves out its last partial batch. If the
    crops of an image are separate records (`Description.crops_together` is False), K epochs share one shuffle of all
    records, and each uses its own part of it. An element is a whole batch because Grain's cost is per element: with
    one record per element, reading is about twenty times slower.
    """

    def __init__(self, records: Records, batch_size: int, num_batches: int, seed: int, rows: np.ndarray):
        """See `train_iterator`; `rows` must be given."""
        self._records = records
        self._batch_size = batch_size
        self._num_batches = num_batches
        self._seed = seed
        self._rows = rows

    def __len__(self) -> int:
        # Counts all epochs: Grain wraps indices around the length, which would repeat the first epoch.
        return self._num_batches

    def __getitem__(self, index: int) -> HostBatch:
        records = self._records
        epoch, batch = divmod(int(index), records.num_images // self._batch_size)
        places = batch * self._batch_size + self._rows
        # Number of the shuffle of all records, and which part of it this epoch uses.
        shuffle, share = divmod(epoch, records.num_records // records.num_images)
        chosen = shuffled(share * records.num_images + places, records.num_records, self._seed, shuffle)
        return records.read(chosen, chosen_crops(chosen, records.crops_per_record, self._seed, epoch))


def train_iterator(
    records: Records,
    batch_size: int,
    num_batches: int,
    seed: int,
    rows: np.ndarray | None = None,
) -> grain.DatasetIterator:
    """Returns an iterator over the batches of a run. It reads ahead; its state is the position of the next batch.

    Args:
      records: the images.
      batch_size: B, the size of the global batch.
      num_batches: number of batches in the whole run.
      seed: seed of the shuffles.
      rows: int [R], the rows of each global batch that this process reads (`parallel.mesh.host_rows`). By default, the
        process reads all rows.

    Returns:
      A Grain iterator over {"tokens": int32 [R, T], "label": int32 [R]}, with `get_state` and `set_state`.
    """
    rows = np.arange(batch_size) if rows is None else rows
    source = TrainBatches(records, batch_size, num_batches, seed, rows)
    return iter(grain.MapDataset.source(source).to_iter_dataset(READ))


class DeviceBatches:
    """An iterator over batches on the devices. It puts batches there ahead of the steps that use them."""

    def __init__(self, batches: Any, put: Callable[[HostBatch], Any]):
        """Makes the iterator.

        Args:
          batches: an iterator over batches on the host, with `get_state`, `set_state` and `close`.
          put: starts the transfer of a batch to the devices, as `parallel.mesh.put_batch` does.
        """
        self._batches = batches
        self._put = put
        self._ahead: collections.deque[tuple[Any, dict[str, Any]]] = collections.deque()
        self._state = batches.get_state()

    def __next__(self) -> Any:
        while len(self._ahead) <= _ON_DEVICE and (batch := next(self._batches, None)) is not None:
            self._ahead.append((self._put(batch), self._batches.get_state()))
        if not self._ahead:
            raise StopIteration
        batch, self._state = self._ahead.popleft()
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch taken, for `set_state` of the host's iterator.

        Batches that were read ahead do not count.
        """
        return self._state

    def close(self) -> None:
        """Ends the threads or processes that read batches."""
        self._batches.close()


def eval_batches(
    records: Records, batch_size: int, num_images: int, rows: np.ndarray | None = None
) -> Iterator[HostBatch]:
    """Yields batches of some records of a data set, the same ones on each call.

    The records are drawn from the whole data set because files are often sorted by class.

    Args:
      records: the images. If a record has several crops, the first is used.
      batch_size: B, the size of the global batch.
      num_images: number of records to draw. 0 draws as many as there are images, which is also the most.
      rows: see `train_iterator`.

    Yields:
      {"tokens": int32 [R, T], "label": int32 [R], "number": int32 [R], "weight": float32 [R]}. "number" counts the
      records drawn, from 0. "weight" is 1, or 0 for the padding that fills the last batch.
    """
    num_images = min(num_images or records.num_images, records.num_images)
    rows = np.arange(batch_size) if rows is None else rows
    for start in range(0, num_images, batch_size):
        numbers = start + rows
        valid = numbers < num_images
        chosen = shuffled(np.where(valid, numbers, 0), records.num_records, seed=0, epoch=0)
        yield records.read(chosen) | {"number": numbers.astype(np.int32), "weight": valid.astype(np.float32)}
