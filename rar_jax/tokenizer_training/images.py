"""Opens the images that a tokenizer's config names."""

from typing import NamedTuple

import numpy as np

from rar_jax.data.glyphs import NUM_HELDOUT, SIDE, class_names, glyph_images
from rar_jax.data.image_loader import ArrayPictures, Pictures, SourcePictures
from rar_jax.data.shuffle import shuffled
from rar_jax.data.sources import ImageFolder, Source, TfdsImages
from rar_jax.errors import UserError, naming
from rar_jax.tokenizer_config import ImageDataConfig, TokenizerConfig

_GLYPHS = 20_000


class ImageSets(NamedTuple):
    """The training images and the held-out images."""

    train: Pictures
    heldout: Pictures


def open_images(config: TokenizerConfig) -> ImageSets:
    """Opens the images of a config.

    Raises:
      UserError: they cannot be found, or there are too few.
    """
    data = config.data
    if data.name == "glyphs":
        if data.image_size != SIDE:
            raise UserError(f"config.data.image_size={data.image_size} must be {SIDE}, the side of the glyphs")
        with naming("config.data"):
            class_names(data.num_classes)
        sets = ImageSets(
            *(
                ArrayPictures(glyph_images(split, np.arange(count), data.num_classes)[0])
                for split, count in (("train", _GLYPHS), ("unseen_faces", NUM_HELDOUT))
            )
        )
    else:
        sets = _from_sources(data)
    if len(sets.train) < config.train.batch_size:
        raise UserError(
            f"config.train.batch_size={config.train.batch_size} is more than the {len(sets.train)} training images of "
            f"config.data.images={data.images}: set a smaller batch, or add images"
        )
    return sets


def _from_sources(data: ImageDataConfig) -> ImageSets:
    source = _open(data, data.images, data.split)
    if data.eval_images:
        tfds = (data.images, data.eval_images) if data.name == "tfds" else (data.eval_images, "")
        return ImageSets(SourcePictures(source), SourcePictures(_open(data, *tfds)))
    numbers = shuffled(np.arange(len(source)), len(source), seed=0, epoch=0)
    count = round(len(source) * data.holdout)
    if count < 1:
        raise UserError(
            f"config.data.holdout={data.holdout} holds out none of the {len(source)} images of "
            f"config.data.images={data.images}: set a larger fraction, or name held-out images with "
            "config.data.eval_images"
        )
    return ImageSets(SourcePictures(source, numbers[count:]), SourcePictures(source, numbers[:count]))


def _open(data: ImageDataConfig, name: str, split: str) -> Source:
    return TfdsImages(name, split, data.data_dir or None) if data.name == "tfds" else ImageFolder(name)
