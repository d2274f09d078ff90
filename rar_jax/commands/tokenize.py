"""Makes token records, which training reads, from images or from a file of tokens.

    python -m rar_jax tokenize --images=FOLDER --tokenizer=WEIGHTS --output=TOKENS --crops=ten
    python -m rar_jax tokenize --tfds=imagenet2012 --data_dir=FOLDER --tokenizer=WEIGHTS --output=TOKENS
    python -m rar_jax tokenize --glyphs=20000 --image_size=32 --tokenizer=WEIGHTS --output=TOKENS
    python -m rar_jax tokenize --jsonl=maskgitvq.jsonl --output=TOKENS --crops_per_image=10

If it is stopped, the same command resumes the work. Several processes can share the work on images.
"""

from absl import flags
from etils import epath

from rar_jax.commands import cli, shared_flags
from rar_jax.data.glyphs import Glyphs
from rar_jax.data.jsonl import import_jsonl
from rar_jax.data.pictures import CROPS
from rar_jax.data.records import UNKNOWN_TOKENIZER, Description, check_local
from rar_jax.data.shards import REJECTED
from rar_jax.data.sources import ClassFolders, TfdsImages, check_outside
from rar_jax.data.tokenization import tokenize_images
from rar_jax.data.tokenizers import open_tokenizer, tokenizer_codes
from rar_jax.errors import UserError
from rar_jax.run_folder import check_folder

_IMAGES, _TFDS, _SPLIT, _DATA_DIR = shared_flags.define_source(
    "Folder with a subfolder of JPEG, PNG or WebP images for each class."
)
_GLYPHS = shared_flags.define_glyphs()
_JSONL = flags.DEFINE_string("jsonl", None, 'File with a line {"class_id": int, "tokens": [ints]} for each crop.')
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the token records.")
_TOKENIZER, _IMAGE_SIZE = shared_flags.define_tokenizer()
_CROPS = flags.DEFINE_enum(
    "crops", "center", CROPS,
    "Crops of each image: center, or ten (corners and centre of an image 1.1 times as large, and their mirror images).",
)  # fmt: skip
_FLIP = flags.DEFINE_bool("flip", False, "Also store the mirror image, with --crops=center.")
_CLASS_LIST = flags.DEFINE_string(
    "class_list", None,
    "File with one class name per line, in the order of the labels. With --images these are the names of the class "
    "folders; by default the folders are sorted by name.",
)  # fmt: skip
_SHARD_SIZE = flags.DEFINE_integer(
    "shard_size", None, "Number of records in a shard. Default: 10,000, and 100,000 with --jsonl.", lower_bound=1
)
_WORKERS = shared_flags.define_workers()
_STRICT = flags.DEFINE_bool("strict", False, "Stop at an image that cannot be used instead of leaving it out.")
_PROCESS_INDEX, _PROCESS_COUNT = shared_flags.define_process()
_CROPS_PER_IMAGE = flags.DEFINE_integer(
    "crops_per_image", 1, "Number of lines of --jsonl that are crops of one image. An epoch uses one of them.", 1
)
_GRID_SIDE = flags.DEFINE_integer("grid_side", 16, "Side of the token grid of --jsonl, in tokens.", 1)
_CODEBOOK_SIZE = flags.DEFINE_integer("codebook_size", 1024, "Number of codes of the tokenizer of --jsonl.", 1)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", None,
    "Number of classes of --jsonl without --class_list (default: 1000), or of --glyphs: 10 (digits, the default) or 36 "
    "(and capital letters).", 1,
)  # fmt: skip
_SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Leave out malformed lines of --jsonl instead of stopping.")

_IMAGES_ONLY = (_CROPS, _FLIP, _WORKERS, _STRICT, _PROCESS_INDEX, _PROCESS_COUNT)
_JSONL_ONLY = (_CROPS_PER_IMAGE, _GRID_SIDE, _CODEBOOK_SIZE, _SKIP_BAD)


def _check() -> None:
    """Raises a `UserError` if a flag is missing, or has no effect on the source that is given."""
    source = shared_flags.name_one((_IMAGES, _TFDS, _GLYPHS, _JSONL))
    unused = {
        "images": (_SPLIT, _DATA_DIR, _NUM_CLASSES, *_JSONL_ONLY),
        "tfds": (_CLASS_LIST, _NUM_CLASSES, *_JSONL_ONLY),
        "glyphs": (_DATA_DIR, _CLASS_LIST, *_JSONL_ONLY),
        "jsonl": (_SPLIT, _DATA_DIR, _IMAGE_SIZE, *_IMAGES_ONLY),
    }
    shared_flags.refuse(unused[source], source)
    if _CLASS_LIST.value:
        shared_flags.refuse((_NUM_CLASSES,), "class_list")
    if not _OUTPUT.value:
        raise UserError("name the folder to write with --output")
    if not _TOKENIZER.value and source != "jsonl":
        raise UserError("name the weights that make the tokens with --tokenizer=WEIGHTS")
    if _FLIP.value and _CROPS.value == "ten":
        raise UserError("--flip has no effect with --crops=ten, which includes mirror images: remove it")
    if source == "glyphs":
        shared_flags.check_glyph_size(_IMAGE_SIZE.value)
    check_local(_OUTPUT.value)
    check_folder("output", _OUTPUT.value)
    if source == "images":
        if not epath.Path(_IMAGES.value).is_dir():
            raise UserError(f"--images={_IMAGES.value}: there is no such folder")
        check_outside(_IMAGES.value, "--output", _OUTPUT.value)


def _class_list() -> list[str] | None:
    """Returns the class names in the file of --class_list, or None without the flag."""
    if _CLASS_LIST.value is None:
        return None
    path = epath.Path(_CLASS_LIST.value)
    if not path.is_file():
        raise UserError(f"--class_list={path}: there is no such file")
    try:
        # Some editors begin the file with a byte-order mark.
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"--class_list={path} is not UTF-8 text ({error}): save it in this encoding") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise UserError(f"--class_list={path} has no class names: write one on each line, or remove the flag")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--class_list={path} has {', '.join(twice)} more than once")
    return names


def _import_lines() -> Description:
    tokenizer = UNKNOWN_TOKENIZER
    if _TOKENIZER.value:
        tokenizer, codebook_size = tokenizer_codes(_TOKENIZER.value)
        if codebook_size != _CODEBOOK_SIZE.value:
            raise UserError(
                f"--codebook_size={_CODEBOOK_SIZE.value}, but --tokenizer={_TOKENIZER.value} has {codebook_size} "
                f"codes: set --codebook_size={codebook_size}"
            )
    return import_jsonl(
        _JSONL.value,
        _OUTPUT.value,
        grid_side=_GRID_SIDE.value,
        codebook_size=_CODEBOOK_SIZE.value,
        class_names=tuple(_class_list() or map(str, range(_NUM_CLASSES.value or 1000))),
        tokenizer=tokenizer,
        crops_per_image=_CROPS_PER_IMAGE.value,
        skip_bad=_SKIP_BAD.value,
        shard_size=_SHARD_SIZE.value or 100_000,
    )


def _encode_images() -> Description | None:
    index, count = shared_flags.share_of_work(_PROCESS_INDEX.value, _PROCESS_COUNT.value)
    class_names = _class_list()
    # Before the images are listed, which takes minutes on a network disk.
    tokenizer = open_tokenizer(_TOKENIZER.value, _IMAGE_SIZE.value)
    if _TFDS.value:
        source = TfdsImages(_TFDS.value, _SPLIT.value, _DATA_DIR.value)
    elif _GLYPHS.value:
        source = Glyphs(_SPLIT.value, _GLYPHS.value, _NUM_CLASSES.value or 10)
    else:
        source = ClassFolders(_IMAGES.value, class_names)
    return tokenize_images(
        source,
        tokenizer,
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
    cli.keep_compiled_programs()
    _check()
    made, what = (_import_lines(), "lines") if _JSONL.value else (_encode_images(), "images")
    if made is None:
        print(f"{_OUTPUT.value}: the shards of this process are finished; other processes are still at work")
        return
    rejected = epath.Path(_OUTPUT.value) / REJECTED
    print(
        f"{_OUTPUT.value}: {made.num_images} images of {len(made.class_names)} classes, {made.crops_per_image} crops "
        f"per image, {made.grid_side**2} tokens of {made.codebook_size} codes"
    )
    if rejected.exists():
        print(f"{rejected}: {len(rejected.read_text().splitlines())} {what} left out, with the reasons")
