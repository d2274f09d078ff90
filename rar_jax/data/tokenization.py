"""Converts images to token records, shard by shard. Worker processes decode images, and the devices encode them."""

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from rar_jax.data.decoding import Rejected, decoded_squares
from rar_jax.data.pictures import cut_crops, square_side
from rar_jax.data.records import Description
from rar_jax.data.shards import ShardedOutput
from rar_jax.data.sources import Source
from rar_jax.data.tokenizers import Tokenizer
from rar_jax.errors import UserError
from rar_jax.progress import Progress

# Number of batches handed to the devices: one that they encode and one that waits.
_ENCODING = 2


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
      num_workers: number of processes that decode images. The default is one less than the cores of this process.
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
    shards = {shard: range(shard * shard_size, min((shard + 1) * shard_size, len(source))) for shard in own}
    unfinished = {shard: numbers for shard, numbers in shards.items() if folder.report(shard) is None}
    total, left = (sum(map(len, part.values())) for part in (shards, unfinished))
    progress = Progress("tokenize", total, done=total - left, unit="image")
    examples = (source[number] for number in itertools.chain(*unfinished.values()))
    decoded = decoded_squares(examples, side, num_workers)
    with folder.alone() if process_count == 1 else contextlib.nullcontext(), contextlib.closing(decoded):
        # The fewest images whose crops fill whole batches of the tokenizer.
        batch_size = tokenizer.batch_size // math.gcd(tokenizer.batch_size, num_crops)
        batches = _batches(decoded, unfinished, batch_size, strict)
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
    encoded, num_rejected = iter(encoded), 0
    for first in encoded:
        shard, rejected = first[0].shard, []
        with folder.open(shard, described) as writer:
            for batch, codes in itertools.chain([first], encoded):
                for label, tokens in zip(batch.labels, codes, strict=True):
                    writer.write(label, tokens)
                rejected += batch.rejected
                num_rejected += len(batch.rejected)
                note = f"{num_rejected} rejected" if num_rejected else ""
                progress.update(len(batch.labels) + len(batch.rejected), note)
                if batch.last:
                    break
            folder.finish(shard, writer, rejected)


def _batches(
    decoded: Iterator[tuple[np.ndarray, int] | Rejected],
    shards: Mapping[int, range],
    batch_size: int,
    strict: bool,
) -> Iterator[_Batch]:
    """Groups images into batches. A batch has images of one shard only, so that shards do not depend on each other."""
    for shard, numbers in shards.items():
        batch = _Batch(shard, [], [], [], last=False)
        for result in itertools.islice(decoded, len(numbers)):
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
