"""Converts images to token records, shard by shard. Worker processes decode images, and the devices encode them."""

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from rar_jax.data.pictures import center_square, cut_crops, read_picture, square_side
from rar_jax.data.records import Description
from rar_jax.data.shards import ShardedOutput
from rar_jax.data.sources import Example, Source
from rar_jax.data.tokenizers import Tokenizer
from rar_jax.errors import UserError
from rar_jax.progress import Progress

# Images per task of a worker. Fewer cost more messages; more delay the first batch.
_TASK = 8
# Number of batches handed to the devices: one that they encode and one that waits.
_ENCODING = 2


class Rejected(NamedTuple):
    """An image that cannot be used, and the reason."""

    name: str
    reason: str


class _Batch(NamedTuple):
    """Images of one shard, in order."""

    shard: int
    labels: list[int]
    squares: list[np.ndarray]
    rejected: list[Rejected]
    last: bool


def tokenize_images(
    source: Source,
    tokenizer: Tokenizer,
    output: epath.PathLike,
    *,
    image_size: int,
    crops: str = "center",
    flip: bool = False,
    shard_size: int = 10_000,
    num_workers: int | None = None,
    strict: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> Description | None:
    """Writes the token records of a source. Shards that are already finished are kept.

    A record holds all crops of an image. A shard depends on its own images alone, so that neither the number of
    processes nor a restart changes it.

    Args:
      source: the images.
      tokenizer: the tokenizer that encodes them.
      output: folder of the records.
      image_size: side of a crop in pixels.
      crops, flip: see `pictures.cut_crops`.
      shard_size: images per shard.
      num_workers: number of processes that decode images. The default is the number of cores minus one.
      strict: whether an image that cannot be used raises an error. Otherwise it is left out and listed.
      process_index, process_count: process p of P makes the shards p, p + P, ...

    Returns:
      The description of the set, or None if other processes have not finished their shards.

    Raises:
      UserError: `output` has records made with other arguments or holds other files, or `strict` is set and an image
        cannot be used.
      OSError: a file cannot be read. Finished shards are kept.
    """
    plan = {"source": source.name, "images": len(source), "listing": _listing(source)}
    plan |= {"tokenizer": tokenizer.fingerprint, "image_size": image_size, "crops": crops, "flip": flip}
    folder = ShardedOutput(output, plan | {"shard_size": shard_size})
    if folder.made is not None:
        return folder.made
    side = square_side(crops, image_size)
    cut = functools.partial(cut_crops, image_size=image_size, crops=crops, flip=flip)
    num_crops = len(cut(np.zeros((side, side, 3), np.uint8)))
    described = _describe(source, tokenizer, num_crops)
    num_shards = -(-len(source) // shard_size)
    own = range(process_index, num_shards, process_count)
    shards = {shard: _examples(source, shard * shard_size, (shard + 1) * shard_size) for shard in own}
    unfinished = {shard: examples for shard, examples in shards.items() if folder.report(shard) is None}
    total, left = (sum(map(len, part.values())) for part in (shards, unfinished))
    progress = Progress("tokenize", total, done=total - left, unit="image")
    decoded = decoded_squares(itertools.chain(*unfinished.values()), side, num_workers)
    with contextlib.closing(decoded):
        batches = _batches(decoded, unfinished, max(1, tokenizer.batch_size // num_crops), strict)
        _write_shards(folder, _encoded(batches, functools.partial(_encode, tokenizer, cut)), described, progress)
    progress.close()
    return folder.complete(num_shards, described)


def _describe(source: Source, tokenizer: Tokenizer, num_crops: int) -> Description:
    """Returns the description of the records of a source."""
    return Description(
        grid_side=tokenizer.grid_side,
        codebook_size=tokenizer.codebook_size,
        class_names=source.class_names,
        tokenizer=tokenizer.fingerprint,
        source=source.name,
        crops_per_image=num_crops,
    )


def _examples(source: Source, first: int, end: int) -> list[Example]:
    """Returns the images of a source from number `first` to before `end`, or to the last one."""
    return [source[i] for i in range(first, min(end, len(source)))]


def _listing(source: Source) -> str:
    """Returns 12 hexadecimal digits that identify the names and labels of all images."""
    digest = hashlib.sha256()
    for i in range(len(source)):
        digest.update(f"{source[i]!r}\n".encode())
    return digest.hexdigest()[:12]


def _write_shards(
    folder: ShardedOutput,
    encoded: Iterable[tuple[_Batch, np.ndarray]],
    described: Description,
    progress: Progress,
) -> None:
    """Writes batches of codes, shard by shard, and counts the images on the progress bar."""
    writer, rejected, num_rejected = None, [], 0
    for batch, codes in encoded:
        writer = writer or folder.open(batch.shard, described)
        for label, tokens in zip(batch.labels, codes, strict=True):
            writer.write(label, tokens)
        rejected += batch.rejected
        num_rejected += len(batch.rejected)
        if batch.last:
            folder.finish(batch.shard, writer, rejected)
            writer, rejected = None, []
        note = f"{num_rejected} rejected" if num_rejected else ""
        progress.update(len(batch.labels) + len(batch.rejected), note)


def _batches(
    decoded: Iterator[tuple[np.ndarray, int] | Rejected],
    shards: Mapping[int, Sequence[Example]],
    batch_size: int,
    strict: bool,
) -> Iterator[_Batch]:
    """Groups images into batches. A batch has images of one shard only, so that shards do not depend on each other."""
    for shard, examples in shards.items():
        batch = _Batch(shard, [], [], [], last=False)
        for result in itertools.islice(decoded, len(examples)):
            if len(batch.squares) == batch_size:
                yield batch
                batch = _Batch(shard, [], [], [], last=False)
            if isinstance(result, Rejected):
                if strict:
                    raise UserError(f"{result.name}: {result.reason}; without --strict, it is left out")
                batch.rejected.append(result)
            else:
                batch.squares.append(result[0])
                batch.labels.append(result[1])
        yield batch._replace(last=True)


def _encode(tokenizer: Tokenizer, cut: Callable[[np.ndarray], np.ndarray], squares: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the codes of the crops that `cut` makes of each square image, int32 [B, crops, T]."""
    crops = np.stack([cut(square) for square in squares])
    return tokenizer.encode(crops.reshape(-1, *crops.shape[2:])).reshape(*crops.shape[:2], -1)


def _encoded(
    batches: Iterable[_Batch], encode: Callable[[Sequence[np.ndarray]], np.ndarray]
) -> Iterator[tuple[_Batch, np.ndarray]]:
    """Yields each batch and its codes, in order. The next batches are prepared while the devices work."""
    with concurrent.futures.ThreadPoolExecutor(_ENCODING) as threads:
        waiting = collections.deque()
        for batch in batches:
            waiting.append((batch, threads.submit(encode, batch.squares) if batch.squares else None))
            while len(waiting) > _ENCODING or (waiting and (waiting[0][1] is None or waiting[0][1].done())):
                done, future = waiting.popleft()
                yield done, future.result() if future else ()
        for done, future in waiting:
            yield done, future.result() if future else ()


def decoded_squares(
    examples: Iterable[Example], side: int, num_workers: int | None = None
) -> Iterator[tuple[np.ndarray, int] | Rejected]:
    """Decodes images in worker processes, ahead of the consumer.

    Args:
      examples: the images.
      side: side of the centre square, in pixels.
      num_workers: number of processes. The default is the number of cores minus one.

    Yields:
      For each image in order, its square uint8 [side, side, 3] and label, or a `Rejected`.

    Raises:
      OSError: a file cannot be read.
    """
    num_workers = num_workers or max(1, (os.cpu_count() or 1) - 1)
    examples = iter(examples)
    # Spawned, because JAX's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context, initializer=_begin_worker) as pool:
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


def _begin_worker() -> None:
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
