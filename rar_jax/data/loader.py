"""Batches for training and evaluation, the same whatever the number of hosts."""

from collections.abc import Iterator

import grain
import numpy as np

from rar_jax.data.records import HostBatch, Records
from rar_jax.data.shuffle import shuffled

# Enough to keep ahead of a step; each thread prepares one whole batch at a time.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


class TrainBatches:
    """A Grain source whose element i is this host's rows of the i-th global batch of the whole run.

    Every epoch is its own shuffle of all records, from (seed, epoch); its last partial batch is left out. A batch is
    one element because Grain's cost is by element: record by record it is some twenty times slower.
    """

    def __init__(
        self, records: Records, batch_size: int, num_batches: int, seed: int, process_index: int, process_count: int
    ):
        """Host p of P takes rows p B/P .. (p+1) B/P of each global batch of B = batch_size."""
        self._records = records
        self._batch_size = batch_size
        self._num_batches = num_batches
        self._seed = seed
        rows = batch_size // process_count
        self._rows = np.arange(process_index * rows, (process_index + 1) * rows)

    def __len__(self) -> int:
        # All epochs: Grain wraps indices around the length, and would repeat the first epoch.
        return self._num_batches

    def __getitem__(self, index: int) -> HostBatch:
        epoch, batch = divmod(int(index), len(self._records) // self._batch_size)
        places = batch * self._batch_size + self._rows
        return self._records.read(shuffled(places, len(self._records), self._seed, epoch))


def train_iterator(
    records: Records,
    batch_size: int,
    num_batches: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Iterates over a run's batches, reading ahead. Its state (`get_state`, `set_state`) is one position.

    Returns:
      A Grain iterator of {"tokens": int32 [B/P, T], "label": int32 [B/P]}.
    """
    source = TrainBatches(records, batch_size, num_batches, seed, process_index, process_count)
    return iter(grain.MapDataset.source(source).to_iter_dataset(_READ))


def eval_batches(
    records: Records, batch_size: int, num_images: int, process_index: int = 0, process_count: int = 1
) -> Iterator[HostBatch]:
    """The first images of a data set, in order; the last batch is padded to full size.

    Args:
      records: the images.
      batch_size: B, global.
      num_images: how many; 0 is all.
      process_index, process_count: as in `TrainBatches`.

    Yields:
      {"tokens", "label", "row": int32 [B/P] image number, "weight": float32 [B/P], 0 for padding}.
    """
    num_images = min(num_images or len(records), len(records))
    rows = batch_size // process_count
    for start in range(0, num_images, batch_size):
        numbers = start + process_index * rows + np.arange(rows)
        valid = numbers < num_images
        batch = records.read(np.where(valid, numbers, 0))
        yield batch | {"row": numbers.astype(np.int32), "weight": valid.astype(np.float32)}
