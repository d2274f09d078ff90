"""Makes token records: python -m rar_jax tokenize --images=DIR --output=TOKENS --tokenizer=WEIGHTS ...

--images, --tfds or --jsonl says where from. --reconstruct draws images beside their reconstructions instead, and
--decode what is in a folder of token records.
"""

import numpy as np
from absl import flags
from etils import epath

from rar_jax.commands import cli
from rar_jax.data.jsonl import import_jsonl
from rar_jax.data.pictures import CROPS
from rar_jax.data.records import UNKNOWN_TOKENIZER, Description, TokenRecords
from rar_jax.data.shards import REJECTED
from rar_jax.data.sources import ClassFolders, ImageFolder, Source, TfdsImages
from rar_jax.data.tokenization import Rejected, decoded_squares, tokenize_images
from rar_jax.data.tokenizers import Tokenizer, open_tokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.reconstruction import psnr
from rar_jax.images.files import image_grid, interleave_rows, write_png
from rar_jax.run_folder import check_folder

_IMAGES = flags.DEFINE_string("images", None, "Folder with a folder of JPEG, PNG or WebP images for each class.")
_TFDS = flags.DEFINE_string("tfds", None, "TFDS data set, prepared as ArrayRecord, such as imagenet2012.")
_SPLIT = flags.DEFINE_string("split", "train", "Of the TFDS data set.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the TFDS data set was prepared.")
_JSONL = flags.DEFINE_string("jsonl", None, 'Token file with {"class_id": int, "tokens": [ints]} a line.')
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the records, or picture (.png) of --reconstruct and --decode.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "MaskGIT-VQGAN weights (.bin, .pth or .safetensors), or digits.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 256, "Side of a crop in pixels.", lower_bound=1)
_CROPS = flags.DEFINE_enum(
    "crops", "center", CROPS, "center, or ten: corners and centre of 1.1 x the size, and mirrors."
)
_FLIP = flags.DEFINE_bool("flip", False, "With --crops=center, also the mirror.")
_CLASS_LIST = flags.DEFINE_string(
    "class_list", None, "File with a class name a line, in the order of the labels: the folders of --images."
)
_SHARD_SIZE = flags.DEFINE_integer("shard_size", None, "Records a shard; by default 10,000, of --jsonl 100,000.", 1)
_WORKERS = flags.DEFINE_integer("workers", None, "Processes that decode images; by default one a core but one.", 1)
_STRICT = flags.DEFINE_bool("strict", False, "Stop at an image that cannot be used, instead of leaving it out.")
_PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "This process, of several on one output.", 0)
_PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "How many there are.", 1)
_CROPS_PER_IMAGE = flags.DEFINE_integer(
    "crops_per_image", 1, "Of --jsonl: how many of its lines are crops of one image; an epoch takes one.", 1
)
_GRID_SIDE = flags.DEFINE_integer("grid_side", 16, "Of --jsonl: the square root of the tokens a line.", 1)
_CODEBOOK_SIZE = flags.DEFINE_integer("codebook_size", 1024, "Of --jsonl: codes are below.", 1)
_NUM_CLASSES = flags.DEFINE_integer("num_classes", 1000, "Of --jsonl without --class_list.", 1)
_SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Of --jsonl: leave malformed lines out, instead of stopping.")
_RECONSTRUCT = flags.DEFINE_bool("reconstruct", False, "Draw images, and below each its reconstruction, to --output.")
_DECODE = flags.DEFINE_string("decode", None, "Draw records of this folder to --output.")
_NUM = flags.DEFINE_integer("num", 32, "Images that --reconstruct and --decode draw.", lower_bound=1)

# What each option is of. --tokenizer, --image_size and --output are of all.
_FROM_IMAGES = ("images", "tfds")
_OPTIONS = (
    (_SPLIT, ("tfds",)),
    (_DATA_DIR, ("tfds",)),
    (_CROPS, _FROM_IMAGES),
    (_FLIP, _FROM_IMAGES),
    (_CLASS_LIST, ("images", "jsonl")),
    (_SHARD_SIZE, ("images", "tfds", "jsonl")),
    (_WORKERS, _FROM_IMAGES),
    (_STRICT, _FROM_IMAGES),
    (_PROCESS_INDEX, _FROM_IMAGES),
    (_PROCESS_COUNT, _FROM_IMAGES),
    (_CROPS_PER_IMAGE, ("jsonl",)),
    (_GRID_SIDE, ("jsonl",)),
    (_CODEBOOK_SIZE, ("jsonl",)),
    (_NUM_CLASSES, ("jsonl",)),
    (_SKIP_BAD, ("jsonl",)),
    (_RECONSTRUCT, _FROM_IMAGES),
    (_NUM, ("reconstruct", "decode")),
)

_COLUMNS = 8


def _tokenizer() -> Tokenizer:
    return open_tokenizer(_TOKENIZER.value, _IMAGE_SIZE.value)


def _class_list() -> list[str] | None:
    if _CLASS_LIST.value is None:
        return None
    path = epath.Path(_CLASS_LIST.value)
    if not path.is_file():
        raise UserError(f"--class_list={path}: there is no such file")
    names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--class_list={path} has {', '.join(twice)} more than once")
    return names


def _source() -> Source:
    if _TFDS.value:
        return TfdsImages(_TFDS.value, _SPLIT.value, _DATA_DIR.value)
    # Reconstructions have no classes: a plain folder will do.
    return ImageFolder(_IMAGES.value) if _RECONSTRUCT.value else ClassFolders(_IMAGES.value, _class_list())


def _spread(count: int, total: int) -> np.ndarray:
    """So many numbers spread evenly over 0..total-1."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))


def _draw(images: np.ndarray, what: str) -> None:
    write_png(_OUTPUT.value, image_grid(images, _COLUMNS))
    print(f"{_OUTPUT.value}: {what}")


def _reconstruct() -> None:
    source, tokenizer = _source(), _tokenizer()
    examples = [source[int(i)] for i in _spread(_NUM.value, len(source))]
    images = []
    for result in decoded_squares(examples, _IMAGE_SIZE.value, _WORKERS.value):
        if isinstance(result, Rejected):
            print(f"left out: {result.name}: {result.reason}")
        else:
            images.append(result[0])
    if not images:
        raise UserError(f"none of these images of {source.name} can be read")
    images = np.stack(images)
    again = tokenizer.decode(tokenizer.encode(images))
    _draw(
        interleave_rows(images, again, _COLUMNS),
        f"{len(images)} images, below each its reconstruction (PSNR {psnr(images, again).mean():.2f} dB)",
    )


def _decode() -> None:
    records, tokenizer = TokenRecords(_DECODE.value), _tokenizer()
    described = records.description
    if described.tokenizer not in (UNKNOWN_TOKENIZER, tokenizer.fingerprint):
        raise UserError(f"{_DECODE.value} was made with {described.tokenizer}, not {tokenizer.fingerprint}")
    for field in ("grid_side", "codebook_size"):
        if getattr(described, field) != getattr(tokenizer, field):
            raise UserError(
                f"{_DECODE.value} has {field}={getattr(described, field)}, and --tokenizer={_TOKENIZER.value} at "
                f"--image_size={_IMAGE_SIZE.value} has {getattr(tokenizer, field)}"
            )
    chosen = _spread(_NUM.value, records.num_records)
    batch = records.read(chosen, np.arange(len(chosen)) % records.crops_per_record)
    names = [described.class_names[label] for label in batch["label"]]
    _draw(tokenizer.decode(batch["tokens"]), f"records {chosen[0]} to {chosen[-1]}, by row:")
    for start in range(0, len(names), _COLUMNS):
        print("  " + ", ".join(names[start : start + _COLUMNS]))


def _make_records() -> Description | None:
    if _JSONL.value:
        names = _class_list() or [str(i) for i in range(_NUM_CLASSES.value)]
        return import_jsonl(
            _JSONL.value,
            _OUTPUT.value,
            grid_side=_GRID_SIDE.value,
            codebook_size=_CODEBOOK_SIZE.value,
            class_names=tuple(names),
            tokenizer=_tokenizer().fingerprint if _TOKENIZER.value else UNKNOWN_TOKENIZER,
            crops_per_image=_CROPS_PER_IMAGE.value,
            skip_bad=_SKIP_BAD.value,
            shard_size=_SHARD_SIZE.value or 100_000,
        )
    if _FLIP.value and _CROPS.value == "ten":
        raise UserError("--flip: --crops=ten has the mirrors already")
    index, count = cli.share_of_work(_PROCESS_INDEX.value, _PROCESS_COUNT.value)
    return tokenize_images(
        _source(),
        _tokenizer(),
        _OUTPUT.value,
        image_size=_IMAGE_SIZE.value,
        crops=_CROPS.value,
        flip=_FLIP.value,
        shard_size=_SHARD_SIZE.value or 10_000,
        num_workers=_WORKERS.value,
        strict=_STRICT.value,
        process_index=index,
        process_count=count,
    )


def main(argv):
    del argv
    with cli.user_errors():
        given = [flag.name for flag in (_IMAGES, _TFDS, _JSONL, _DECODE) if flag.value]
        if len(given) != 1:
            raise UserError(f"name one of --images, --tfds, --jsonl and --decode; given: {', '.join(given) or 'none'}")
        if not _OUTPUT.value:
            raise UserError("name what to write with --output")
        if not _TOKENIZER.value and not _JSONL.value:
            raise UserError("name the weights that make the tokens with --tokenizer=WEIGHTS")
        cli.check_options([given[0], *(["reconstruct"] if _RECONSTRUCT.value else [])], _OPTIONS)
        drawing = bool(_RECONSTRUCT.value or _DECODE.value)
        if drawing and not _OUTPUT.value.endswith(".png"):
            raise UserError(f"--output={_OUTPUT.value} must be a .png file: --reconstruct and --decode draw a picture")
        check_folder("output", epath.Path(_OUTPUT.value).parent if drawing else _OUTPUT.value)
        if _DECODE.value:
            return _decode()
        if _RECONSTRUCT.value:
            return _reconstruct()
        made = _make_records()
    if made is None:
        print(f"{_OUTPUT.value}: this process's shards are finished; others are at work")
        return
    rejected = epath.Path(_OUTPUT.value) / REJECTED
    print(
        f"{_OUTPUT.value}: {made.num_images} images of {len(made.class_names)} classes, {made.crops_per_image} crops "
        f"an image, {made.grid_side**2} codes of {made.codebook_size}"
    )
    if rejected.exists():
        print(f"{rejected}: {len(rejected.read_text().splitlines())} left out, with the reasons")


if __name__ == "__main__":
    cli.run(main)
