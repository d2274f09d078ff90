"""Samples: python -m rar_jax.sample --checkpoint=RUN [--classes=3,5] [--num=64] [--npz] ..."""

import numpy as np
from absl import flags
from etils import epath

from rar_jax import cli
from rar_jax.generate import load
from rar_jax.images.files import image_grid, write_npz, write_png
from rar_jax.progress import Progress
from rar_jax.run_folder import check_folder
from rar_jax.sampling.guidance import GUIDANCE_SCHEDULES
from rar_jax.sampling.options import SAMPLING_ORDERS
from rar_jax.sampling.sampler import check_labels, spread_classes

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's or converted folder, or a published file of weights.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Weights of the tokenizer, named alike; by default the run's.")
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; by default the newest.", lower_bound=0)
_OUT = flags.DEFINE_string("out", None, "Folder of the pictures; by default samples/ in the run's folder, or here.")
_CLASSES = flags.DEFINE_list("classes", [], "Class indices; by default all, or ten spread over all without --num.")
_NUM = flags.DEFINE_integer("num", None, "Images, spread evenly over the classes; by default 8 a class.", lower_bound=1)
_NPZ = flags.DEFINE_bool("npz", False, "Also write samples.npz, in the format of the ADM evaluator.")
_SEED = flags.DEFINE_integer("seed", 0, "Of all draws; one seed gives the same images every time.", lower_bound=0)
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images decoded at once.", lower_bound=1)
# By default those of the run.
_OPTIONS = (
    flags.DEFINE_enum("scan_order", None, SAMPLING_ORDERS, "Of decoding; random gives each image one of its own."),
    flags.DEFINE_enum("guidance", None, GUIDANCE_SCHEDULES, "Schedule of the guidance weight."),
    flags.DEFINE_float("guidance_scale", None, "1 is no guidance."),
    flags.DEFINE_float("guidance_power", None, "Of pow_cosine; a larger one starts later."),
    flags.DEFINE_float("temperature", None, "0 takes the likeliest token."),
    flags.DEFINE_integer("top_k", None, "Draw from the so many likeliest tokens only; 0: from all."),
    flags.DEFINE_float("top_p", None, "Draw from the likeliest tokens of this probability only; 1: from all."),
)

_DEFAULT_PER_CLASS = 8
# A picture of more would not be looked at.
_MAX_ROWS = 32
_MAX_COLUMNS = 16


def _requested_labels(num_classes: int) -> np.ndarray:
    """One label an image, grouped by class."""
    try:
        classes = [int(name) for name in _CLASSES.value]
    except ValueError:
        raise ValueError(f"--classes={','.join(_CLASSES.value)} must be class indices, such as 0,3,5") from None
    if not classes and _NUM.value is None:
        classes = spread_classes(num_classes)
    elif not classes:
        classes = range(num_classes)
    classes = check_labels(classes, num_classes)
    num = _NUM.value or _DEFAULT_PER_CLASS * len(classes)
    return classes[np.sort(np.arange(num) % len(classes))]


def main(argv):
    del argv
    with cli.user_errors():
        if _OUT.value:
            check_folder("out", _OUT.value)
        if not _CHECKPOINT.value:
            raise ValueError("name a run's folder with --checkpoint=RUN")
        generator = load(_CHECKPOINT.value, _STEP.value, _TOKENIZER.value)
        labels = _requested_labels(generator.sampler.model.num_classes)
        progress = Progress("sample", len(labels), unit="image")
        images = generator.generate(
            labels,
            seed=_SEED.value,
            batch_size=_BATCH.value,
            on_batch=progress.update,
            **{flag.name: flag.value for flag in _OPTIONS if flag.value is not None},
        )
    progress.close()
    folder = epath.Path(_CHECKPOINT.value)
    out = epath.Path(_OUT.value or (folder / "samples" if folder.is_dir() else "samples"))
    rows = [images[labels == label][:_MAX_COLUMNS] for label in dict.fromkeys(labels.tolist())][:_MAX_ROWS]
    columns = max(map(len, rows))
    blank = np.full((columns, *images.shape[1:]), 255, np.uint8)
    grid = np.concatenate([np.concatenate([row, blank[len(row) :]]) for row in rows])
    write_png(out / "grid.png", image_grid(grid, columns))
    print(f"{out / 'grid.png'}: samples of step {generator.step}, one class a row")
    if _NPZ.value:
        write_npz(out / "samples.npz", images)
        print(f"{out / 'samples.npz'}: {len(images)} images, uint8 {images.shape}")


if __name__ == "__main__":
    cli.run(main)
