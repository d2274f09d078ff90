"""Batches for training and evaluation, the same whatever the number of processes."""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from rar_jax.data.records import HostBatch, Records
from rar_jax.data.shuffle import chosen_crops, shuffled

# Enough to keep ahead of a step; each thread prepares one whole batch at a time.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
# Batches on their way to the devices or there, besides the one in use.
_ON_DEVICE = 2


class TrainBatches:
    """A Grain source whose element i is this process's rows of the i-th global batch of the whole run.

    Every epoch is its own shuffle of all images, from (seed, epoch); its last partial batch is left out. Where nobody
    knows which records are crops of one image, an epoch is its share of one shuffle of all records. A batch is one
    element because Grain's cost is by element: record by record it is some twenty times slower.
    """

    def __init__(self, records: Records, batch_size: int, num_batches: int, seed: int, rows: np.ndarray):
        """Takes rows int [R] of each global batch of batch_size."""
        self._records = records
        self._batch_size = batch_size
        self._num_batches = num_batches
        self._seed = seed
        self._rows = rows

    def __len__(self) -> int:
        # All epochs: Grain wraps indices around the length, and would repeat the first epoch.
        return self._num_batches

    def __getitem__(self, index: int) -> HostBatch:
        records = self._records
        epoch, batch = divmod(int(index), records.num_images // self._batch_size)
        places = batch * self._batch_size + self._rows
        # Epochs that share one shuffle of all records: one where a record is an image.
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
    """Iterates over a run's batches, reading ahead. Its state (`get_state`, `set_state`) is one position.

    Args:
      records: the images.
      batch_size: B, global.
      num_batches: of the whole run.
      seed: of the order.
      rows: int [R], those of each global batch that this process reads (`parallel.mesh.host_rows`); all by default.

    Returns:
      A Grain iterator of {"tokens": int32 [R, T], "label": int32 [R]}.
    """
    rows = np.arange(batch_size) if rows is None else rows
    source = TrainBatches(records, batch_size, num_batches, seed, rows)
    return iter(grain.MapDataset.source(source).to_iter_dataset(_READ))


class DeviceBatches:
    """Batches on the devices, some of them ahead of the step that will use them."""

    def __init__(self, batches: grain.DatasetIterator, put: Callable[[HostBatch], Any]):
        """Begins; `put` starts a host batch on its way to the devices, as `parallel.mesh.put_batch` does."""
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
        """The position behind the last batch taken, whatever was read ahead of it; for `set_state` of the iterator."""
        return self._state


def eval_batches(
    records: Records, batch_size: int, num_images: int, rows: np.ndarray | None = None
) -> Iterator[HostBatch]:
    """So many records of a data set, always the same ones, drawn from all of it: files are often in order of class.

    Args:
      records: the images; of several crops the first is taken.
      batch_size: B, global.
      num_images: how many; 0 is all.
      rows: as in `train_iterator`.

    Yields:
      {"tokens", "label", "number": int32 [R] 0..num_images-1, "weight": float32 [R], 0 for padding}; the last batch is
      padded to full size.
    """
    num_images = min(num_images or records.num_images, records.num_images)
    rows = np.arange(batch_size) if rows is None else rows
    for start in range(0, num_images, batch_size):
        numbers = start + rows
        valid = numbers < num_images
        chosen = shuffled(np.where(valid, numbers, 0), records.num_records, seed=0, epoch=0)
        yield records.read(chosen) | {"number": numbers.astype(np.int32), "weight": valid.astype(np.float32)}
