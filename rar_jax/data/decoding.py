"""Decodes images in worker processes. They start fast, because this module does not import JAX."""

import collections
import concurrent.futures
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rar_jax.data.pictures import center_square, read_picture
from rar_jax.data.sources import Example
from rar_jax.parallel.cores import usable_cores

# Images per task of a worker. Fewer cost more messages; more delay the first batch.
_TASK = 8


class Rejected(NamedTuple):
    """An image that cannot be used, and the reason."""

    name: str
    reason: str


def decoded_squares(
    examples: Iterable[Example], side: int, num_workers: int | None = None
) -> Iterator[tuple[np.ndarray, int] | Rejected]:
    """Decodes images in worker processes, ahead of the consumer.

    Args:
      examples: the images.
      side: side of the centre square, in pixels.
      num_workers: number of processes. The default is one less than the usable cores.

    Yields:
      For each image in order, its square uint8 [side, side, 3] and label, or a `Rejected`.

    Raises:
      OSError: a file cannot be read.
    """
    num_workers = num_workers or max(1, usable_cores() - 1)
    examples = iter(examples)
    # Spawned, because JAX's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context, initializer=begin_worker) as pool:
        waiting = collections.deque()
        try:
            while True:
                while len(waiting) < 4 * num_workers and (task := list(itertools.islice(examples, _TASK))):
                    waiting.append(pool.submit(_decode, task, side))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def begin_worker() -> None:
    """Begins a worker process: it ignores SIGINT, and ends when its parent does."""
    # Ctrl-C reaches the whole process group. The main process alone reacts to it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent():
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    # Killing the parent does not end its workers.
    threading.Thread(target=end_with_parent, daemon=True).start()


def _decode(examples: Sequence[Example], side: int) -> list[tuple[np.ndarray, int] | Rejected]:
    results = []
    for example in examples:
        # A file that cannot be read ends the work: a fault of the disk or network must not leave images out.
        data, label = example.read()
        try:
            results.append((center_square(read_picture(data), side), label))
        # An error of any kind in the contents of one image must not end the work on the others.
        except Exception as error:
            results.append(Rejected(example.name, " ".join(str(error).split()) or type(error).__name__))
    return results
