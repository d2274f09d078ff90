"""Token records: the codes of images, stored in ArrayRecord shards beside a description.

A record is little-endian binary: an int32 label, then the T codes of each of its crops as uint16. The description,
`dataset.json`, says what the numbers mean.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from array_record.python import array_record_module
from etils import epath

from rar_jax.errors import UserError, naming
from rar_jax.files import NO_ROOM, aside, file_size, write_atomically
from rar_jax.models.sizes import MAX_CODEBOOK_SIZE

DESCRIPTION = "dataset.json"
# Stands for the fingerprint if the tokenizer that made the codes is not known.
UNKNOWN_TOKENIZER = "unknown"

# Each record is a group, so that it can be read alone. Codes hardly compress.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Records are read at random, so reading ahead would fetch records that are not needed.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER = 4096
_SEQUENTIAL_READ = 2**24

# A batch on the host: {"tokens": int32 [B, T], "label": int32 [B]}.
HostBatch = dict[str, np.ndarray]


class Records(Protocol):
    """A data set whose records can be read by number.

    Attributes:
      num_images: number of images, which is the length of an epoch.
      num_records: number of records.
      crops_per_record: number of crops in each record.
    """

    num_images: int
    num_records: int
    crops_per_record: int

    def read(self, indices: np.ndarray, crops: np.ndarray | int = 0) -> HostBatch:
        """Reads records.

        Args:
          indices: int64 [B], numbers of the records.
          crops: int64 [B], the crop to take from each record, or one number for all.

        Returns:
          {"tokens": int32 [B, T], "label": int32 [B]}, in the order of `indices`.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """The contents of `dataset.json`. While the records are written, it has no images and no shards yet.

    Attributes:
      num_images: number of source images, which is the length of an epoch.
      grid_side: the square root of T.
      codebook_size: V. Every code is below V.
      class_names: the name of each class, in the order of the labels.
      tokenizer: fingerprint of the tokenizer that made the codes, or `UNKNOWN_TOKENIZER`.
      source: a text that says where the images came from.
      shards: file name -> number of records, in order.
      crops_per_image: K.
      crops_together: True if a record holds the K crops of an image; crop 0 is the centre. An epoch then uses one crop
        of every image. False if a record holds one crop and the image of a crop is not known, as in the published JSONL
        files. An epoch then uses 1/K of the records, and K epochs use no record twice.
      plan: the settings of the command that made the records. With the same settings, the command recognises a finished
        set; with others, it refuses the folder.
    """

    num_images: int = 0
    grid_side: int
    codebook_size: int
    class_names: tuple[str, ...]
    tokenizer: str
    source: str
    shards: dict[str, int] = dataclasses.field(default_factory=dict)
    crops_per_image: int = 1
    crops_together: bool = True
    plan: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def crops_per_record(self) -> int:
        return self.crops_per_image if self.crops_together else 1

    def completed(self, shards: Mapping[str, int], plan: Mapping[str, Any]) -> "Description":
        """Returns this description with the shards that were written and their number of images."""
        num_images = sum(shards.values()) * self.crops_per_record // self.crops_per_image
        return dataclasses.replace(self, num_images=num_images, shards=dict(shards), plan=dict(plan))


def shard_name(number: int) -> str:
    """Returns the file name of a shard."""
    return f"tokens-{number:05d}.array_record"


def write_description(folder: epath.Path, description: Description) -> None:
    """Writes `dataset.json`. It must be written last, because a folder that has it counts as complete."""
    write_atomically(folder / DESCRIPTION, json.dumps(dataclasses.asdict(description), indent=2) + "\n")


def read_description(folder: epath.Path) -> Description:
    """Reads `dataset.json`.

    Raises:
      UserError: the file does not exist, or it does not describe token records.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        raise UserError(f"no token records in {str(folder)!r}: it has no {DESCRIPTION}")
    try:
        fields = json.loads(path.read_text())
        fields["class_names"] = tuple(map(str, fields["class_names"]))
        fields["shards"] = {str(name): int(count) for name, count in fields["shards"].items()}
        for number in ("num_images", "grid_side", "codebook_size"):
            fields[number] = int(fields[number])
        return Description(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} does not describe token records: {error}") from None


def _record_type(description: Description) -> np.dtype:
    shape = description.crops_per_record, description.grid_side**2
    return np.dtype([("label", "<i4"), ("tokens", "<u2", shape)])


class ShardWriter:
    """Writes one shard to a temporary file and renames it at the end. A shard with its final name is complete.

    A context manager, which removes the temporary file if the shard was not completed.
    """

    def __init__(self, path: epath.Path, description: Description):
        """Opens the temporary file.

        Args:
          path: final path of the shard, in a folder that exists.
          description: describes the records.

        Raises:
          UserError: the codebook is too large for the codes to fit in uint16.
        """
        if description.codebook_size > MAX_CODEBOOK_SIZE:
            raise UserError(
                f"a codebook of {description.codebook_size} codes does not fit token records, which allow at most "
                f"{MAX_CODEBOOK_SIZE} codes"
            )
        self._path = path
        self._aside = aside(path)
        self._record = np.zeros((), _record_type(description))
        self._limits = description.codebook_size, len(description.class_names)
        self._writer = array_record_module.ArrayRecordWriter(str(self._aside), _WRITER_OPTIONS)
        self.num_records = 0

    def write(self, label: int, tokens: np.ndarray) -> None:
        """Adds a record: codes [crops, T] (0..V-1) and a label (0..C-1).

        Raises:
          UserError: a code or the label is out of range, or the codes have another shape.
        """
        codebook_size, num_classes = self._limits
        if tokens.shape != (shape := self._record["tokens"].shape):
            raise UserError(f"codes of shape {tokens.shape} must be of shape {shape}")
        for code in (tokens.min(), tokens.max()):
            if not 0 <= code < codebook_size:
                raise UserError(f"code {code} is not in 0..{codebook_size - 1}")
        if not 0 <= label < num_classes:
            raise UserError(f"label {label} is not in 0..{num_classes - 1}")
        self._record["label"], self._record["tokens"] = label, tokens
        self._writer.write(self._record.tobytes())
        self.num_records += 1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        with contextlib.suppress(RuntimeError):
            self._writer.close()
        self._aside.unlink(missing_ok=True)

    def close(self) -> None:
        """Completes the shard and gives it its final name.

        Raises:
          OSError: the disk is full.
        """
        try:
            self._writer.close()
        except RuntimeError as error:
            # array_record reports errors of the operating system as text alone.
            number = next((number for number in NO_ROOM if os.strerror(number) in str(error)), None)
            if number is None:
                raise
            raise OSError(number, os.strerror(number), str(self._path)) from None
        self._aside.replace(self._path)


def write_records(
    folder: epath.PathLike,
    images: Iterable[tuple[np.ndarray, int]],
    description: Description,
    shard_size: int = 100_000,
) -> Description:
    """Writes a data set, with its description last, so that a folder with a description is complete.

    Args:
      folder: folder of the records. It is made if it does not exist.
      images: pairs of codes (0..V-1) and a label (0..C-1). The codes are [T], or [crops, T] if a record holds several
        crops.
      description: describes the records, without their shards.
      shard_size: records per shard.

    Returns:
      The description that was written.

    Raises:
      UserError: a code or a label is out of range, or there are no images.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: dict[str, int] = {}
    images = iter(images)
    while (first := next(images, None)) is not None:
        name = shard_name(len(shards))
        shard = itertools.chain([first], itertools.islice(images, shard_size - 1))
        shards[name] = _write_shard(folder / name, shard, description)
    if not shards:
        raise UserError(f"no images in {description.source}: there is nothing to write to {folder}")
    description = description.completed(shards, plan={})
    write_description(folder, description)
    return description


def _write_shard(path: epath.Path, images: Iterable[tuple[np.ndarray, int]], description: Description) -> int:
    """Writes one shard of `write_records`, and returns its number of records."""
    with ShardWriter(path, description) as writer, naming(description.source):
        for tokens, label in images:
            tokens = np.asarray(tokens)
            writer.write(label, tokens[None] if tokens.ndim == 1 else tokens)
        writer.close()
    return writer.num_records


def check_local(folder: epath.PathLike) -> None:
    """Raises a `UserError` for a folder of records that is on a bucket, where they are neither written nor read."""
    scheme, remote, place = str(folder).partition("://")
    if remote:
        bucket = place.split("/")[0]
        raise UserError(
            f"{folder}: token records cannot be on {scheme}://; mount the bucket on every host, with "
            f"mkdir -p /mnt/{bucket} && gcsfuse --implicit-dirs {bucket} /mnt/{bucket}, and use /mnt/{place}"
        )


class TokenRecords:
    """A folder of token records, which can be read at random, and by several threads at once."""

    def __init__(self, folder: epath.PathLike):
        """Opens every shard.

        Raises:
          UserError: the folder holds no token records, a shard is missing, unreadable, or not as long as described, or
            the folder is on a bucket (such as gs://), which must be mounted to read records at random.
        """
        check_local(folder)
        folder = epath.Path(folder)
        path = folder / DESCRIPTION
        self.description = read_description(folder)
        shards = self.description.shards
        self._type = _record_type(self.description)
        self._paths = [folder / name for name in shards]
        self._readers = []
        for shard, count in zip(self._paths, shards.values(), strict=True):
            try:
                reader = array_record_module.ArrayRecordReader(
                    str(shard), options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
                )
                found = reader.num_records()
            except (RuntimeError, ValueError) as error:
                raise UserError(f"shard {shard} cannot be read: {error}") from None
            if found != count:
                raise UserError(
                    f"shard {shard} holds {found} records, but {DESCRIPTION} says {count}: write the records again"
                )
            self._readers.append((reader, threading.Lock()))
        self._starts = np.cumsum([0, *shards.values()])
        self.num_images = self.description.num_images
        self.num_records = int(self._starts[-1])
        self.crops_per_record = self.description.crops_per_record
        if not 0 < self.num_images * self.description.crops_per_image <= self.num_records * self.crops_per_record:
            raise UserError(
                f"{path} says {self.num_images} images of {self.description.crops_per_image} crops, but its shards "
                f"hold {self.num_records * self.crops_per_record} crops: write the records again"
            )

    def read(self, indices: np.ndarray, crops: np.ndarray | int = 0) -> HostBatch:
        """Reads records; see `Records.read`.

        Raises:
          UserError: a record cannot be read, or its label or a code is out of range. The message names the shard.
        """
        # Reads records in the order of the files, so that the reader moves only forwards.
        by_place = np.argsort(indices, kind="stable")
        ends = np.searchsorted(indices[by_place], self._starts)
        records = np.empty(len(indices), self._type)
        for shard in np.flatnonzero(ends[1:] > ends[:-1]):
            reader, lock = self._readers[shard]
            mine = by_place[ends[shard] : ends[shard + 1]]
            with lock:
                for i, place in zip(mine.tolist(), (indices[mine] - self._starts[shard]).tolist(), strict=True):
                    try:
                        reader.seek(place)
                        records[i] = np.frombuffer(reader.read(), self._type)[0]
                    except (RuntimeError, ValueError, IndexError) as error:
                        raise UserError(
                            f"record {place} of shard {self._paths[shard]} cannot be read: {error}"
                        ) from None
        tokens = records["tokens"][np.arange(len(indices)), crops]
        self._check_range("label", records["label"], len(self.description.class_names), indices)
        self._check_range("code", tokens, self.description.codebook_size, indices)
        return {"tokens": tokens.astype(np.int32), "label": records["label"].astype(np.int32)}

    def _check_range(self, what: str, values: np.ndarray, limit: int, indices: np.ndarray) -> None:
        """Raises a `UserError` if a value [B] or [B, T] is not in 0..limit-1, because the model would not notice it."""
        if 0 <= values.min(initial=0) and values.max(initial=0) < limit:
            return
        outside = np.argwhere((values < 0) | (values >= limit))[0]
        index = indices[outside[0]]
        shard = np.searchsorted(self._starts, index, side="right") - 1
        raise UserError(
            f"record {index - self._starts[shard]} of shard {self._paths[shard]} has {what} {values[tuple(outside)]}, "
            f"which is not in 0..{limit - 1}, the range that {DESCRIPTION} gives"
        )

    def read_ahead(self) -> None:
        """Reads all files once in the background, so that the random reads that follow find them in memory.

        A disk reads much faster in sequence than at random. Does nothing if the files take more than half of the
        machine's memory.
        """
        if sum(map(file_size, self._paths)) > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2:
            return

        def read():
            for path in self._paths:
                with path.open("rb") as file:
                    while file.read(_SEQUENTIAL_READ):
                        pass

        threading.Thread(target=read, name="read_ahead", daemon=True).start()


class SyntheticRecords:
    """Random tokens for smoke tests and timing. Image i is drawn from a generator seeded with (seed, i)."""

    crops_per_record = 1

    def __init__(self, num_images: int, seed: int, num_tokens: int, codebook_size: int, num_classes: int):
        self.num_images = self.num_records = num_images
        self._seed = seed
        self._shape = num_tokens, codebook_size, num_classes

    def read(self, indices: np.ndarray, crops: np.ndarray | int = 0) -> HostBatch:
        """Reads records; see `Records.read`."""
        num_tokens, codebook_size, num_classes = self._shape
        generators = [np.random.default_rng((self._seed, int(i))) for i in indices]
        tokens = np.stack([g.integers(codebook_size, size=num_tokens, dtype=np.int32) for g in generators])
        return {"tokens": tokens, "label": np.asarray(indices, np.int64).astype(np.int32) % num_classes}
