"""Converts published token files (JSON Lines) to token records.

Each line is {"class_id": int, "tokens": [T ints]}.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
from etils import epath

from rar_jax.data.records import UNKNOWN_TOKENIZER, Description, ShardWriter
from rar_jax.data.shards import ShardedOutput
from rar_jax.errors import UserError
from rar_jax.files import file_size
from rar_jax.progress import Progress

# A line of a thousand tokens is shorter. A file without line ends must not be read into memory as one line.
_LONGEST_LINE = 2**20
# What to do about a line that cannot be read, and about one whose label or codes do not fit.
_SKIP = "--skip_bad leaves such lines out"
_EXPECTED = "--grid_side, --codebook_size and --num_classes or --class_list say what is expected; "


def import_jsonl(
    path: epath.PathLike,
    output: epath.PathLike,
    *,
    grid_side: int,
    codebook_size: int,
    class_names: tuple[str, ...],
    tokenizer: str = UNKNOWN_TOKENIZER,
    crops_per_image: int = 1,
    skip_bad: bool = False,
    shard_size: int = 100_000,
) -> Description:
    """Writes the token records of a file. Shards that are already finished are kept.

    Args:
      path: the JSONL file.
      output: folder of the records.
      grid_side: the square root of T.
      codebook_size: V.
      class_names: the name of each class, in the order of the labels.
      tokenizer: fingerprint of the tokenizer that made the codes.
      crops_per_image: K. The file has K lines for each image, but does not say which lines belong to one image.
      skip_bad: whether malformed lines are left out and listed. Otherwise the first one raises an error.
      shard_size: lines per shard.

    Raises:
      UserError: the file does not exist or has no lines, `output` has records made with other arguments or holds other
        files, or a line is malformed.
    """
    path = epath.Path(path)
    size = _size(path)
    described = Description(
        grid_side=grid_side,
        codebook_size=codebook_size,
        class_names=class_names,
        tokenizer=tokenizer,
        source=str(path),
        crops_per_image=crops_per_image,
        crops_together=crops_per_image == 1,
    )
    plan = {"source": str(path), "bytes": size, "tokenizer": tokenizer, "crops_per_image": crops_per_image}
    classes = hashlib.sha256("\n".join(class_names).encode()).hexdigest()[:12]
    plan |= {"shard_size": shard_size, "T": grid_side**2, "V": codebook_size, "classes": classes}
    folder = ShardedOutput(output, plan)
    if folder.made is not None:
        return folder.made
    with folder.alone():
        num_shards = _write_shards(folder, described, path, shard_size, skip_bad)
    return folder.complete(num_shards, described)


def _size(path: epath.Path) -> int:
    """Returns the number of bytes of a file.

    Raises:
      UserError: the file does not exist or has no lines.
    """
    if not path.is_file():
        raise UserError(f"--jsonl={path}: there is no such file")
    size = file_size(path)
    if not size:
        raise UserError(f"--jsonl={path} has no lines")
    return size


def _write_shards(
    folder: ShardedOutput, described: Description, path: epath.Path, shard_size: int, skip_bad: bool
) -> int:
    """Writes the shards that are not finished. Returns the number of all shards."""
    size = file_size(path)
    shard, place, line_number = _finished(folder)
    progress = Progress("import", size, done=place, unit="B")
    with path.open("rb") as file:
        file.seek(place)
        while place < size:
            with folder.open(shard, described) as writer:
                lines = itertools.islice(_lines(file), shard_size)
                rejected = _write_lines(writer, lines, path, line_number + 1, skip_bad)
                line_number += writer.num_records + len(rejected)
                progress.update(file.tell() - place, note=f"line {line_number}")
                place = file.tell()
                folder.finish(shard, writer, rejected, place=place, line=line_number)
            shard += 1
    progress.close()
    return shard


def _finished(folder: ShardedOutput) -> tuple[int, int, int]:
    """Returns the number of finished shards, and the number of bytes and of lines of the file that they hold."""
    shard, place, line_number = 0, 0, 0
    while (report := folder.report(shard)) is not None:
        shard, place, line_number = shard + 1, report["place"], report["line"]
    return shard, place, line_number


def _write_lines(
    writer: ShardWriter, lines: Iterable[bytes], path: epath.Path, first: int, skip_bad: bool
) -> list[tuple[str, str]]:
    """Writes the lines of one shard, the first of which has the number `first` in the file.

    Returns:
      The place of each malformed line, and the reason.

    Raises:
      UserError: a line is malformed, unless `skip_bad` is set.
    """
    rejected = []
    for number, line in enumerate(lines, first):
        advice = _SKIP
        try:
            parsed = _parse(line)
            advice = _EXPECTED + _SKIP
            writer.write(*parsed)
        except UserError as error:
            where = f"{path}, line {number}"
            if not skip_bad:
                raise UserError(f"{where}: {error}; {advice}") from None
            rejected.append((where, str(error)))
    return rejected


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a file. An overlong line is cut short, and the rest of it is skipped."""
    while line := file.readline(_LONGEST_LINE):
        rest = line
        while len(rest) == _LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(_LONGEST_LINE)
        yield line


def _parse(line: bytes) -> tuple[int, np.ndarray]:
    """Returns the label and the codes [1, T] of a line. Their ranges are not checked."""
    if not line.endswith(b"\n") and len(line) == _LONGEST_LINE:
        raise UserError("it is too long")
    try:
        fields = json.loads(line)
        label, tokens = fields["class_id"], fields["tokens"]
    except (ValueError, RecursionError):
        raise UserError("it is not JSON") from None
    except (KeyError, TypeError, IndexError):
        raise UserError('it must have "class_id" and "tokens"') from None
    if type(label) is not int:
        raise UserError(f'"class_id" {label!r} must be an integer')
    try:
        codes = np.array(tokens)
    except ValueError:
        codes = np.empty(0)
    # NumPy converts booleans to integers if the list holds integers too.
    if codes.dtype.kind not in "iu" or codes.ndim != 1 or bool in map(type, tokens):
        raise UserError('"tokens" must be a list of integers')
    return label, codes[None]
