"""Opens the data sets of a config and checks that they match it."""

from typing import NamedTuple

import filelock
from etils import epath

from rar_jax.config import Config
from rar_jax.data.digits import write_digits
from rar_jax.data.glyphs import IDENTITY, NUM_HELDOUT, SIDE, Glyphs, class_names
from rar_jax.data.records import (
    UNKNOWN_TOKENIZER,
    Description,
    Records,
    SyntheticRecords,
    TokenRecords,
    check_local,
    read_description,
)
from rar_jax.data.tokenization import tokenize_images
from rar_jax.data.tokenizers import Tokenizer
from rar_jax.errors import UserError, naming
from rar_jax.files import cache_folder

# How held-out records get the labels of the training records.
_SAME_CLASSES = (
    "tokenize the held-out images with --class_list=FILE, a list of the training classes; a class without held-out "
    "images needs an empty folder"
)


class Datasets(NamedTuple):
    """The training images, and the held-out images if there are any."""

    train: Records
    heldout: Records | None


def open_datasets(config: Config, tokenizer: Tokenizer | None) -> Datasets:
    """Opens the data sets that `config.data` names.

    Args:
      config: the run's config.
      tokenizer: the config's tokenizer, or None if it has none.

    Raises:
      UserError: a data set does not exist, cannot be read, or does not match the config. The message gives the value in
        the config and the value in the data set.
    """
    data, model = config.data, config.model
    if data.name == "synthetic":

        def synthetic(count, seed):
            return SyntheticRecords(count, seed, model.grid_side**2, model.codebook_size, model.num_classes)

        return Datasets(synthetic(data.num_images, 0), synthetic(config.train.batch_size, 1))
    train, heldout = (_records_folder(config, tokenizer, split) for split in ("train", "heldout"))
    records = open_records(config, tokenizer, train)
    if records.num_images != data.num_images:
        raise UserError(
            f"config.data.num_images={data.num_images}, but {train} holds {records.num_images} images: "
            f"set --config.data.num_images={records.num_images}"
        )
    if heldout:
        check_local(heldout)
        # First, because its messages say how to make held-out records that fit.
        _check_alike(config, records.description, read_description(epath.Path(heldout)))
    heldout = open_records(config, tokenizer, heldout) if heldout else None
    records.read_ahead()
    return Datasets(records, heldout)


def open_heldout(config: Config, tokenizer: Tokenizer | None) -> TokenRecords | None:
    """Opens the held-out images alone, without the training images; see `open_datasets`. Synthetic data has none."""
    folder = "" if config.data.name == "synthetic" else _records_folder(config, tokenizer, "heldout")
    return open_records(config, tokenizer, folder) if folder else None


def _records_folder(config: Config, tokenizer: Tokenizer | None, split: str) -> epath.PathLike:
    """Returns the folder of the token records of a split, train or heldout. Embedded images are written on first use.

    It is empty if `config.data` names no held-out images.
    """
    data = config.data
    if data.name == "digits":
        return write_digits(data.path or cache_folder("digits"))[split]
    if data.name == "glyphs":
        return _tokenized_glyphs(config, tokenizer, split)
    return data.path if split == "train" else data.eval_path


def _check_alike(config: Config, train: Description, heldout: Description) -> None:
    """Checks that held-out records have the codes and labels of the training records.

    Raises:
      UserError: another tokenizer made them, they have more or fewer classes, or a class has another label.
    """
    tokenizers = train.tokenizer, heldout.tokenizer
    where = f"config.data.eval_path={config.data.eval_path}"
    if UNKNOWN_TOKENIZER not in tokenizers and len(set(tokenizers)) > 1:
        raise UserError(
            f"{where} was made with the tokenizer {heldout.tokenizer}, but the training records with "
            f"{train.tokenizer}: use one tokenizer for both"
        )
    if (ours := len(train.class_names)) != (theirs := len(heldout.class_names)):
        raise UserError(f"{where} has {theirs} classes, but the training records have {ours}: {_SAME_CLASSES}")
    labels = {name: label for label, name in enumerate(train.class_names)}
    for label, name in enumerate(heldout.class_names):
        if labels.get(name, label) != label:
            raise UserError(
                f"{where} has the class {name!r} as label {label}, but in the training records it is label "
                f"{labels[name]}: {_SAME_CLASSES}"
            )


def _tokenized_glyphs(config: Config, tokenizer: Tokenizer, split: str) -> epath.Path:
    """Returns the folder of the token records of the training glyphs or of the held-out ones.

    They are made on first use and kept under `config.data.path`, by default in the user's cache folder. Processes that
    start together wait for the one that makes them.
    """
    data, num_classes = config.data, config.model.num_classes
    if data.image_size > SIDE:
        raise UserError(
            f"config.data.image_size={data.image_size} would enlarge the glyphs: set --config.data.image_size={SIDE} "
            f"and --config.model.grid_side={SIDE // data.downsampling}"
        )
    with naming("config.model"):
        class_names(num_classes)
    num_images = data.num_images if split == "train" else NUM_HELDOUT
    name = f"{split}_{IDENTITY}_{num_classes}_{num_images}_{data.image_size}_{tokenizer.fingerprint}"
    folder = epath.Path(data.path or cache_folder("glyphs")) / name
    check_local(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        tokenize_images(Glyphs(split, num_images, num_classes), tokenizer, folder, image_size=data.image_size)
    return folder


def open_records(config: Config, tokenizer: Tokenizer | None, folder: epath.PathLike) -> TokenRecords:
    """Opens a folder of token records, and checks that the records match a config; see `open_datasets`."""
    records = TokenRecords(folder)
    described = records.description
    for field, ours, theirs in (
        ("model.grid_side", config.model.grid_side, described.grid_side),
        ("model.codebook_size", config.model.codebook_size, described.codebook_size),
        ("model.num_classes", config.model.num_classes, len(described.class_names)),
    ):
        if ours != theirs:
            raise UserError(
                f"config.{field}={ours}, but {folder} was made with {theirs}: set --config.{field}={theirs}"
            )
    if tokenizer is not None and described.tokenizer not in (UNKNOWN_TOKENIZER, tokenizer.fingerprint):
        raise UserError(
            f"config.data.tokenizer={config.data.tokenizer} is {tokenizer.fingerprint}, but {folder} was made with "
            f"{described.tokenizer}: set the tokenizer that made these codes; another one decodes them to wrong images"
        )
    return records
