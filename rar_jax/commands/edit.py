"""Draws a part of images again, given the rest: inpainting, outpainting, another class for a region.

    python -m rar_jax edit --checkpoint=RUN --images=a.png,b.png --classes=otter --box=64,64,192,192 --results=4
    python -m rar_jax edit --checkpoint=RUN --images=small.png --classes=207 --place=64,64

edit.png shows each image, its mask and the results side by side; edited/ has each result as a PNG.
"""

import os

import numpy as np
from absl import flags
from etils import epath

from rar_jax.commands import cli, shared_flags
from rar_jax.errors import UserError
from rar_jax.generate import load
from rar_jax.generation.editing import box_mask, read_canvas, read_mask
from rar_jax.generation.pictures import samples_folder
from rar_jax.images.files import image_grid, write_png
from rar_jax.progress import Progress

_CHECKPOINT = shared_flags.define_checkpoint()
_TOKENIZER = shared_flags.define_model_tokenizer()
_STEP = shared_flags.define_step()
_IMAGES = flags.DEFINE_list("images", [], "Image files to edit.")
_CLASSES = flags.DEFINE_list("classes", [], "Name or index of the class to draw: one for all images, or one for each.")
_MASK = flags.DEFINE_string(
    "mask", None, "Image file whose light pixels (above mid-grey) are drawn again. It is cropped like the images."
)
_BOX = flags.DEFINE_list("box", [], "Box of pixels to draw again: top,left,bottom,right.")
_PLACE = flags.DEFINE_list(
    "place", [], "Place of smaller images on the model's canvas: top,left in pixels. The rest of the canvas is drawn."
)
_MARGIN = flags.DEFINE_integer("margin", 0, "Number of rings of tokens around the mask that are drawn too.", 0)
_PASTE = flags.DEFINE_bool(
    "paste", True, "Keep the pixels outside the mask, instead of their reconstruction by the tokenizer."
)
_RESULTS = flags.DEFINE_integer("results", 4, "Number of results for each image.", 1)
_OUT = shared_flags.define_out("results")
_SEED = shared_flags.define_seed()
_BATCH = shared_flags.define_batch_size()
_OPTIONS = shared_flags.define_options()


def _integers(flag: flags.FlagHolder[list[str]], count: int) -> list[int] | None:
    if not flag.value:
        return None
    try:
        numbers = [int(number) for number in flag.value]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise UserError(f"--{flag.name}={','.join(flag.value)} must be {count} integers")
    return numbers


def _check_inputs(out: epath.Path) -> None:
    """Raises a `UserError` if an image or the mask is missing, or lies where the results are written."""
    grid, results = (os.path.realpath(out / name) for name in ("edit.png", "edited"))
    for flag, files in (("images", _IMAGES.value), ("mask", [_MASK.value] if _MASK.value else [])):
        for file in files:
            if not epath.Path(file).is_file():
                raise UserError(f"--{flag}={file}: there is no such file")
            if (real := os.path.realpath(file)) == grid or os.path.dirname(real) == results:
                raise UserError(f"--{flag}={file} lies where the results are written: choose another --out, or copy it")


def main(argv):
    del argv
    cli.keep_compiled_programs()
    if not _CHECKPOINT.value or not _IMAGES.value or not _CLASSES.value:
        raise UserError("name a model with --checkpoint=RUN, files with --images=A,B and a class with --classes=NAME")
    if not (_MASK.value or _BOX.value or _PLACE.value):
        raise UserError("say what to draw with --mask=FILE, --box=top,left,bottom,right or --place=top,left")
    if _MASK.value and _BOX.value:
        raise UserError(f"--mask={_MASK.value} and --box={','.join(_BOX.value)} both say what to draw: give only one")
    if len(_CLASSES.value) not in (1, len(_IMAGES.value)):
        raise UserError(
            f"--classes has {len(_CLASSES.value)} classes for {len(_IMAGES.value)} images: give one class, or one for "
            "each image"
        )
    box, place = _integers(_BOX, 4), _integers(_PLACE, 2)
    out = shared_flags.results_folder(_CHECKPOINT.value, _OUT.value, samples_folder)
    _check_inputs(out)
    given = _OPTIONS()
    generator = load(_CHECKPOINT.value, _STEP.value, _TOKENIZER.value)
    side = generator.tokenizer.grid_side * generator.tokenizer.downsampling
    mask = read_mask(_MASK.value, side) if _MASK.value else box_mask(box, side) if box else None
    images, masks = map(np.stack, zip(*(read_canvas(path, side, mask, place) for path in _IMAGES.value), strict=True))
    if empty := [path for path, mask in zip(_IMAGES.value, masks, strict=True) if not mask.any()]:
        raise UserError(f"no pixel of {empty[0]} is masked: use a --mask with light pixels, or --place a smaller image")
    count, repeats = len(images), _RESULTS.value
    classes = np.resize(np.array(_CLASSES.value), count)
    progress = Progress("edit", count * repeats, unit="image")
    edited = generator.edit(
        images.repeat(repeats, 0), masks.repeat(repeats, 0), [*classes.repeat(repeats)],
        margin=_MARGIN.value, paste=_PASTE.value, seed=_SEED.value, batch_size=_BATCH.value, on_batch=progress.update,
        **given,
    ).reshape(count, repeats, side, side, 3)  # fmt: skip
    progress.close()
    shown = np.where(masks[..., None], np.uint8(128), images)
    grid = np.concatenate([images[:, None], shown[:, None], edited], axis=1)
    write_png(out / "edit.png", image_grid(grid.reshape(-1, side, side, 3), 2 + repeats))
    # An earlier command can have left more results.
    for file in (out / "edited").glob("[0-9][0-9][0-9]_[0-9][0-9][0-9].png"):
        file.unlink()
    for i, results in enumerate(edited):
        for j, result in enumerate(results):
            write_png(out / "edited" / f"{i:03d}_{j:03d}.png", result)
    print(f"{out / 'edit.png'}: each image with its mask and {repeats} results")
    print(f"{out / 'edited'}: {count * repeats} images")
