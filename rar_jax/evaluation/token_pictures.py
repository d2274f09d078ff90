"""Draws images above their reconstructions by a tokenizer, and the images that token records hold."""

import dataclasses

import numpy as np

from rar_jax.data.decoding import Rejected, decoded_squares
from rar_jax.data.records import UNKNOWN_TOKENIZER, TokenRecords
from rar_jax.data.sources import Source
from rar_jax.data.token_batches import evenly_spaced
from rar_jax.data.tokenizers import Tokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.reconstruction import psnr
from rar_jax.images.files import image_grid, interleave_rows

_COLUMNS = 8


@dataclasses.dataclass(frozen=True)
class DrawnReconstructions:
    """Some images of a source beside their reconstructions.

    Attributes:
      picture: uint8 [rows, columns, 3], a grid with each image's reconstruction below it.
      count: number of images in the picture.
      psnr: mean peak signal-to-noise ratio of the reconstructions, dB.
      rejected: images that were left out because they cannot be read.
    """

    picture: np.ndarray
    count: int
    psnr: float
    rejected: list[Rejected]


def draw_reconstructions(
    source: Source, tokenizer: Tokenizer, image_size: int, num: int, num_workers: int | None = None
) -> DrawnReconstructions:
    """Encodes and decodes some images of a source, evenly spaced.

    Args:
      source: the images.
      tokenizer: encodes and decodes them.
      image_size: side in pixels of the centre square cut from each image.
      num: number of images, at most all.
      num_workers: processes that decode image files; by default one less than the CPU cores.

    Raises:
      UserError: none of the images can be read.
    """
    images, rejected = [], []
    examples = [source[int(place)] for place in evenly_spaced(num, len(source))]
    for result in decoded_squares(examples, image_size, num_workers):
        if isinstance(result, Rejected):
            rejected.append(result)
        else:
            images.append(result[0])
    if not images:
        raise UserError(f"none of these images of {source.name} can be read")
    images = np.stack(images)
    decoded = tokenizer.decode(tokenizer.encode(images))
    picture = image_grid(interleave_rows(images, decoded, _COLUMNS), _COLUMNS)
    return DrawnReconstructions(picture, len(images), float(psnr(images, decoded).mean()), rejected)


def draw_records(records: TokenRecords, tokenizer: Tokenizer, num: int) -> tuple[np.ndarray, list[list[str]]]:
    """Decodes some token records, evenly spaced.

    Args:
      records: the records. If each record has several crops, consecutive images show different crops.
      tokenizer: the tokenizer that made them.
      num: number of records, at most all.

    Returns:
      A grid of the images, uint8 [rows, columns, 3], and for each of its rows the class names of the images.

    Raises:
      UserError: the records were made with another tokenizer, or have another grid or codebook.
    """
    described = records.description
    if described.tokenizer not in (UNKNOWN_TOKENIZER, tokenizer.fingerprint):
        raise UserError(
            f"the records were made with the tokenizer {described.tokenizer}, not {tokenizer.fingerprint}: "
            "name the records' tokenizer with --tokenizer"
        )
    for field in ("grid_side", "codebook_size"):
        if getattr(described, field) != getattr(tokenizer, field):
            raise UserError(
                f"the records have {field}={getattr(described, field)}, but {tokenizer.fingerprint} at this image size "
                f"has {getattr(tokenizer, field)}: name the tokenizer and the image size that they were made with"
            )
    places = evenly_spaced(num, records.num_records)
    batch = records.read(places, np.arange(len(places)) % records.crops_per_record)
    names = [described.class_names[label] for label in batch["label"]]
    rows = [names[start : start + _COLUMNS] for start in range(0, len(names), _COLUMNS)]
    return image_grid(tokenizer.decode(batch["tokens"]), _COLUMNS), rows
