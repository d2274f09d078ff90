"""Flags that several commands have. A command calls these functions to define the ones that it needs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from etils import epath

from rar_jax.data.glyphs import NUM_CLASSES, SIDE
from rar_jax.errors import UserError
from rar_jax.evaluation.features import NAMES as FEATURES
from rar_jax.evaluation.scoring import REFERENCE_KINDS
from rar_jax.run_folder import check_folder
from rar_jax.sampling.options import MAX_SEED, Options

# absl then counts these flags as flags of the command, whose --help shows them.
flags.disclaim_key_flags()


def define_checkpoint() -> flags.FlagHolder[str]:
    """Defines --checkpoint, the model."""
    return flags.DEFINE_string(
        "checkpoint", None, "Folder of a run, of one of its steps or of converted weights, or a published file."
    )


def results_folder(checkpoint: str | None, out: str | None, default: Callable[[str], epath.Path]) -> epath.Path:
    """Returns the folder of a command's results: `out`, or else the default of the checkpoint.

    Raises:
      UserError: there is no checkpoint, or the folder cannot be used.
    """
    if not checkpoint:
        raise UserError("name a model with --checkpoint=RUN")
    folder = epath.Path(out or default(checkpoint))
    check_folder("out", folder)
    return folder


def define_step() -> flags.FlagHolder[int]:
    """Defines --step, the step of the checkpoint."""
    return flags.DEFINE_integer("step", None, "Step of the checkpoint. Default: the newest.", lower_bound=0)


def define_model_tokenizer() -> flags.FlagHolder[str]:
    """Defines --tokenizer, the tokenizer that decodes a model's codes."""
    return flags.DEFINE_string(
        "tokenizer", None, "Weights of the tokenizer, or digits. Default: the tokenizer of the checkpoint's run."
    )


def define_out(content: str) -> flags.FlagHolder[str]:
    """Defines --out, the folder of some content; see `generation.pictures.samples_folder` for the default."""
    return flags.DEFINE_string(
        "out", None,
        f"Folder of the {content}. Default: samples/ in the run's folder, or in the current folder for a weights file.",
    )  # fmt: skip


def define_tokenizer(
    meaning: str = "Weights of the tokenizer (a MaskGIT-VQGAN), or digits.",
) -> tuple[flags.FlagHolder[str], flags.FlagHolder[int]]:
    """Defines --tokenizer and --image_size, for commands that have no model."""
    return (
        flags.DEFINE_string("tokenizer", None, meaning),
        flags.DEFINE_integer("image_size", 256, "Side in pixels of the square cut from each image.", lower_bound=1),
    )


def define_classes(default: str) -> flags.FlagHolder[list[str]]:
    """Defines --classes, the classes of the samples."""
    return flags.DEFINE_list("classes", [], f"Names or indices of classes. Default: {default}.")


def define_seed(of: str = "the samples. The same seed gives the same images") -> flags.FlagHolder[int]:
    """Defines --seed, the seed of something."""
    return flags.DEFINE_integer("seed", 0, f"Seed of {of}.", 0, MAX_SEED)


def define_batch_size(default: int = 256, done: str = "decoded") -> flags.FlagHolder[int]:
    """Defines --batch_size, the number of images with which something is done at once."""
    return flags.DEFINE_integer("batch_size", default, f"Number of images {done} at once.", lower_bound=1)


def define_options() -> Callable[[], dict[str, Any]]:
    """Defines a flag for each sampling option.

    Returns:
      A function that returns the given options by name, and raises a `UserError` for a value out of range.
    """
    define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_bool}
    holders = []
    for field in dataclasses.fields(Options):
        meaning = f"{field.metadata['meaning']} Default: the run's."
        if choices := field.metadata["one_of"]:
            holders.append(flags.DEFINE_enum(field.name, None, choices, meaning))
        else:
            holders.append(define[field.type](field.name, None, meaning))

    def given():
        options = {holder.name: holder.value for holder in holders if holder.value is not None}
        Options(**options)
        return options

    return given


def define_source(images: str) -> tuple[flags.FlagHolder[str], ...]:
    """Defines --images with this meaning, --tfds, --split and --data_dir: where images come from."""
    return (
        flags.DEFINE_string("images", None, images),
        flags.DEFINE_string("tfds", None, "Name of a TFDS data set prepared as ArrayRecord, such as imagenet2012."),
        flags.DEFINE_string(
            "split", "train", "Split of the TFDS data set, or of the glyphs: train, heldout or unseen_faces."
        ),
        flags.DEFINE_string("data_dir", None, "Folder in which the TFDS data set was prepared. Default: TFDS's own."),
    )


def define_glyphs() -> flags.FlagHolder[int]:
    """Defines --glyphs, the number of embedded glyphs."""
    return flags.DEFINE_integer(
        "glyphs", None, "Number of embedded glyphs to use as images. --split says which ones.", 1
    )


def define_glyph_classes() -> flags.FlagHolder[str]:
    """Defines --num_classes, the number of classes of the glyphs."""
    return flags.DEFINE_enum(
        "num_classes", "10", [str(number) for number in NUM_CLASSES],
        "Number of classes of the glyphs: the ten digits, or 36 with the capital letters.",
    )  # fmt: skip


def check_glyph_size(image_size: int) -> None:
    """Raises a `UserError` if the glyphs are smaller than the images that are wanted."""
    if image_size > SIDE:
        raise UserError(f"--image_size={image_size} would enlarge the glyphs: set --image_size={SIDE}")


def define_workers() -> flags.FlagHolder[int]:
    """Defines --workers, the number of processes that decode images."""
    return flags.DEFINE_integer(
        "workers",
        None,
        "Number of processes that decode images. Default: one less than the CPU cores of this process.",
        lower_bound=1,
    )


def define_reference() -> flags.FlagHolder[str]:
    """Defines --reference, the statistics or images that samples are compared with."""
    return flags.DEFINE_string(
        "reference", None, "Statistics or images to compare with: an .npz file, a folder of images or a sampling job."
    )


def define_reference_kind() -> flags.FlagHolder[str]:
    """Defines --reference_kind, for the report."""
    return flags.DEFINE_enum(
        "reference_kind",
        None,
        REFERENCE_KINDS,
        "Set that the reference images belong to. It is only written to the report.",
    )


def define_features() -> tuple[flags.FlagHolder[str], flags.FlagHolder[str]]:
    """Defines --features and --inception, the features for comparing images."""
    return (
        flags.DEFINE_enum(
            "features",
            "inception",
            FEATURES,
            "Features to compare: inception, pixels (for small images only), or glyphs (of the classifier of glyphs).",
        ),
        flags.DEFINE_string("inception", None, "Weights of the FID Inception network, for --features=inception."),
    )


def define_process() -> tuple[flags.FlagHolder[int], flags.FlagHolder[int]]:
    """Defines --process_index and --process_count, for processes that share the work."""
    return (
        flags.DEFINE_integer("process_index", None, "Number of this process, from 0, with --process_count.", 0),
        flags.DEFINE_integer("process_count", None, "Number of processes that share this job. Default: 1.", 1),
    )


def share_of_work(index: int | None, count: int | None, default: tuple[int, int] = (0, 1)) -> tuple[int, int]:
    """Returns the number of this process and the number of processes, by --process_index and --process_count.

    Raises:
      UserError: one of the two is given without the other, or the index is not below the count.
    """
    if (index is None) != (count is None):
        raise UserError("--process_index and --process_count must be given together")
    if index is None:
        return default
    if index >= count:
        raise UserError(f"--process_index={index} must be below --process_count={count}")
    return index, count


def name_one(holders: Sequence[flags.FlagHolder[str]]) -> str:
    """Returns the name of the one flag that is given.

    Raises:
      UserError: none of them is given, or several are.
    """
    given = [holder.name for holder in holders if holder.value]
    if len(given) != 1:
        wanted = ", ".join(f"--{holder.name}" for holder in holders)
        raise UserError(f"name one of {wanted}; given: {', '.join(given) or 'none'}")
    return given[0]


def refuse(holders: Sequence[flags.FlagHolder], given: str) -> None:
    """Raises a `UserError` that names the first of these flags that is set, because it has no effect with `given`."""
    for holder in holders:
        if holder.present:
            raise UserError(f"--{holder.name} has no effect with --{given}: remove it")


def define_picture() -> flags.FlagHolder[str]:
    """Defines --output, a PNG file; see `check_picture`."""
    return flags.DEFINE_string("output", "grid.png", "PNG file to write.")


def check_picture(output: str) -> None:
    """Raises a `UserError` if a PNG file cannot be written to --output."""
    if not output.endswith(".png"):
        raise UserError(f"--output={output} must be a .png file")
    check_folder("output", epath.Path(output).parent)
