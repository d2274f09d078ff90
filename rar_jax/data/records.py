"""Token records: images as codes, in ArrayRecord shards with a description beside them.

A record is little-endian binary: int32 label, then T codes as uint16. `dataset.json` says what they mean.
"""

import dataclasses
import itertools
import json
import threading
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from array_record.python import array_record_module
from etils import epath

DESCRIPTION = "dataset.json"

# Records one by one, so that any one is read alone; codes hardly compress.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Random reads: a read-ahead would fetch what is not asked for.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER = 4096

# {"tokens": int32 [B, T], "label": int32 [B]}
HostBatch = dict[str, np.ndarray]


class Records(Protocol):
    """Something that images can be read from by number."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> HostBatch:
        """The images of int64 [B], in that order."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What `dataset.json` holds.

    Attributes:
      num_images: of the whole set.
      grid_side: the square root of T.
      codebook_size: V; every code is below.
      class_names: one a class, in the order of the labels.
      tokenizer: the name of what made the codes.
      source: where the images came from, for people.
      shards: file name -> its number of records, in order.
    """

    num_images: int
    grid_side: int
    codebook_size: int
    class_names: tuple[str, ...]
    tokenizer: str
    source: str
    shards: dict[str, int]


def _record_type(num_tokens: int) -> np.dtype:
    return np.dtype([("label", "<i4"), ("tokens", "<u2", (num_tokens,))])


def write_records(
    folder: epath.PathLike,
    images: Iterable[tuple[np.ndarray, int]],
    *,
    grid_side: int,
    codebook_size: int,
    class_names: tuple[str, ...],
    tokenizer: str,
    source: str,
    shard_size: int = 100_000,
) -> Description:
    """Writes a data set; its description comes last, so that a folder with one is complete.

    Args:
      folder: made if need be.
      images: pairs of codes [T] (0..V-1) and a label (0..C-1).
      grid_side, codebook_size, class_names, tokenizer, source: see `Description`.
      shard_size: records a shard.

    Returns:
      The description written.

    Raises:
      ValueError: a code or a label is out of range, or there are no images.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = np.zeros((), _record_type(grid_side**2))
    shards: dict[str, int] = {}
    images = iter(images)
    while chunk := list(itertools.islice(images, shard_size)):
        name = f"tokens-{len(shards):05d}.array_record"
        writer = array_record_module.ArrayRecordWriter(str(folder / name), _WRITER_OPTIONS)
        for tokens, label in chunk:
            tokens = np.asarray(tokens)
            if tokens.min() < 0 or tokens.max() >= codebook_size:
                raise ValueError(f"code {tokens.max()} of {source} is not in 0..{codebook_size - 1}")
            if not 0 <= label < len(class_names):
                raise ValueError(f"label {label} of {source} is not in 0..{len(class_names) - 1}")
            record["label"], record["tokens"] = label, tokens
            writer.write(record.tobytes())
        writer.close()
        shards[name] = len(chunk)
    if not shards:
        raise ValueError(f"no images in {source}: there is nothing to write to {folder}")
    description = Description(
        num_images=sum(shards.values()),
        grid_side=grid_side,
        codebook_size=codebook_size,
        class_names=class_names,
        tokenizer=tokenizer,
        source=source,
        shards=shards,
    )
    (folder / DESCRIPTION).write_text(json.dumps(dataclasses.asdict(description), indent=2))
    return description


class TokenRecords:
    """A folder of token records, read at random. May be read from several threads."""

    def __init__(self, folder: epath.PathLike):
        """Opens every shard.

        Raises:
          ValueError: the folder holds no data set, or a shard is missing, unreadable or not as long as described.
        """
        folder = epath.Path(folder)
        path = folder / DESCRIPTION
        if not path.exists():
            raise ValueError(f"no token records in {str(folder)!r}: it has no {DESCRIPTION}")
        try:
            fields = json.loads(path.read_text())
            self.description = Description(**fields | {"class_names": tuple(fields["class_names"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} does not describe token records: {error}") from None
        self._type = _record_type(self.description.grid_side**2)
        self._readers = []
        for name, count in self.description.shards.items():
            try:
                reader = array_record_module.ArrayRecordReader(
                    str(folder / name), options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
                )
                found = reader.num_records()
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"shard {folder / name} cannot be read: {error}") from None
            if found != count:
                raise ValueError(f"shard {folder / name} holds {found} records, and {DESCRIPTION} says {count}")
            self._readers.append((reader, threading.Lock()))
        self._starts = np.cumsum([0, *self.description.shards.values()])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: np.ndarray) -> HostBatch:
        """The images of int64 [B], in that order: {"tokens": int32 [B, T], "label": int32 [B]}."""
        indices = np.asarray(indices)
        records = np.empty(len(indices), self._type)
        # In file order, so that reads run forwards.
        by_place = np.argsort(indices, kind="stable")
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(shards):
            reader, lock = self._readers[shard]
            with lock:
                for i in by_place[shards[by_place] == shard]:
                    reader.seek(int(indices[i] - self._starts[shard]))
                    records[i] = np.frombuffer(reader.read(), self._type)[0]
        return {"tokens": records["tokens"].astype(np.int32), "label": records["label"].astype(np.int32)}


class SyntheticRecords:
    """Made-up tokens, for smoke tests and timing: image i is drawn from a generator seeded with (seed, i)."""

    def __init__(self, num_images: int, seed: int, num_tokens: int, codebook_size: int, num_classes: int):
        self._seed = seed
        self._shape = num_images, num_tokens, codebook_size, num_classes

    def __len__(self) -> int:
        return self._shape[0]

    def read(self, indices: np.ndarray) -> HostBatch:
        """As `TokenRecords.read`."""
        _, num_tokens, codebook_size, num_classes = self._shape
        generators = [np.random.default_rng((self._seed, int(i))) for i in indices]
        tokens = np.stack([g.integers(codebook_size, size=num_tokens, dtype=np.int32) for g in generators])
        return {"tokens": tokens, "label": np.asarray(indices, np.int64).astype(np.int32) % num_classes}
