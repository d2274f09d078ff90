"""Reads the tokens of images in batches, from token records or from image files, without holding all in memory."""

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np

from rar_jax.data.decoding import Rejected, decoded_squares
from rar_jax.data.records import HostBatch, Records
from rar_jax.data.sources import Source
from rar_jax.data.tokenizers import Tokenizer
from rar_jax.errors import UserError


def evenly_spaced(count: int, total: int) -> np.ndarray:
    """Returns at most `count` of the places 0 to total - 1, ascending."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))


def record_batches(records: Records, places: np.ndarray, batch_size: int) -> Iterator[HostBatch]:
    """Yields the records at some places in batches; the last batch can be smaller."""
    for start in range(0, len(places), batch_size):
        yield records.read(places[start : start + batch_size])


def image_batches(source: Source, places: np.ndarray, tokenizer: Tokenizer, batch_size: int) -> Iterator[HostBatch]:
    """Encodes the images at some places of a source, cut to the centre square, and yields their tokens in batches.

    Worker processes decode the next images meanwhile. The last batch can be smaller.

    Raises:
      UserError: an image cannot be decoded. The message names it.
      OSError: a file cannot be read.
    """
    side = tokenizer.grid_side * tokenizer.downsampling
    with contextlib.closing(decoded_squares((source[int(place)] for place in places), side)) as decoded:
        while batch := list(itertools.islice(decoded, batch_size)):
            for each in batch:
                if isinstance(each, Rejected):
                    raise UserError(f"{each.name}: {each.reason}")
            squares, labels = zip(*batch, strict=True)
            yield {"tokens": tokenizer.encode(np.stack(squares)), "label": np.array(labels, np.int32)}
