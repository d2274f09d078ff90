"""Samples: python -m rar_jax sample --checkpoint=RUN [--classes=otter,207] [--num=64] [--npz] ...

Without --npz and --png it draws a grid; with them it is a job, which the same command goes on with after a kill.
"""

import errno
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from etils import epath

from rar_jax.checkpoints.weights import split_step
from rar_jax.commands import cli
from rar_jax.commands.compilation_cache import keep_compiled_programs
from rar_jax.data.class_names import class_label
from rar_jax.errors import UserError
from rar_jax.generate import Generator, load
from rar_jax.generation.animation import appearing
from rar_jax.generation.job import FILES, check_outputs, run_job
from rar_jax.images.files import image_grid, write_animation, write_png
from rar_jax.progress import Progress
from rar_jax.run_folder import check_folder
from rar_jax.sampling.guidance import GUIDANCE_SCHEDULES
from rar_jax.sampling.options import SAMPLING_ORDERS, Options
from rar_jax.sampling.sampler import MAX_SEED, sample_tokens, spread_classes

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's or converted folder, or a published file of weights.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Weights of the tokenizer, named alike; by default the run's.")
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; by default the newest.", lower_bound=0)
_OUT = flags.DEFINE_string("out", None, "Folder of the pictures; by default samples/ in the run's folder, or here.")
_CLASSES = flags.DEFINE_list(
    "classes", [], "Classes by name or index; by default all, or ten spread over all without --num."
)
_NUM = flags.DEFINE_integer("num", None, "Images, of the classes in turn; by default 8 of each.", lower_bound=1)
_NPZ = flags.DEFINE_bool(
    "npz", None, "Write samples.npz, in the format of the ADM evaluator; by default for over 512 images without --png."
)
_PNG = flags.DEFINE_bool("png", False, "Write images/000000.png and so on.")
_ANIMATE = flags.DEFINE_enum("animate", None, ("gif", "webp"), "Also draw images as they appear, token by token.")
_SEED = flags.DEFINE_integer("seed", 0, "Of all draws; one seed gives the same images every time.", 0, MAX_SEED)
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images decoded at once.", lower_bound=1)
_PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "This process, of several on one job.", 0)
_PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "How many there are.", 1)
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
# Rows and columns of a picture; one of more would not be looked at.
_GRID = 32, 16
_ANIMATION = 4, 2
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _requested_labels(generator: Generator) -> np.ndarray:
    """One label an image, the classes in turn: each stretch of images has all of them, as the Inception Score needs.

    Of more classes than images some are taken, spread over all.
    """
    classes = _CLASSES.value
    if not classes:
        number = generator.sampler.model.config.num_classes
        classes = spread_classes(number) if _NUM.value is None else range(number)
    classes = generator.labels(classes)
    num = _NUM.value or _DEFAULT_PER_CLASS * len(classes)
    if num < len(classes):
        return classes[np.arange(num) * len(classes) // num]
    return classes[np.arange(num) % len(classes)]


def _outputs() -> list[str]:
    """What a job writes; nothing where the pictures are enough."""
    # Where nothing is named, the classes are too few for more than pictures.
    num = _NUM.value or _DEFAULT_PER_CLASS * len(_CLASSES.value)
    npz = num > _GRID[0] * _GRID[1] and not _PNG.value if _NPZ.value is None else _NPZ.value
    return [name for name, wanted in zip(FILES, (_PNG.value, npz), strict=True) if wanted]


class _Picture:
    """A grid of some of the images, one class a row, with its name."""

    def __init__(self, labels: np.ndarray, names: Sequence[str] | None, size: tuple[int, int]):
        rows, columns = size
        self._rows = [np.flatnonzero(labels == label)[:columns] for label in dict.fromkeys(labels.tolist())][:rows]
        self._names = [class_label(labels[row[0]], names) for row in self._rows]
        # Of the images, row by row.
        self.numbers = np.concatenate(self._rows)

    def draw(self, images: np.ndarray) -> np.ndarray:
        """The picture, uint8 [rows, columns, 3], of the images of `numbers`."""
        columns = max(map(len, self._rows))
        cells = np.full((len(self._rows), columns, *images.shape[1:]), 255, np.uint8)
        cells[np.arange(columns) < np.array([[len(row)] for row in self._rows])] = images
        return image_grid(cells.reshape(-1, *images.shape[1:]), columns, self._names)


def _generate(
    generator: Generator,
    labels: np.ndarray,
    options: Options,
    out: epath.Path,
    shown: np.ndarray,
    outputs: Sequence[str],
    index: int,
    count: int,
) -> np.ndarray | None:
    """Samples the images of the labels as process `index` of `count`, and returns those to show.

    None in a process that leaves that to another.
    """
    if outputs:
        return run_job(
            generator, labels, out, seed=_SEED.value, options=options, batch_size=_BATCH.value, outputs=outputs,
            shown=shown, process_index=index, process_count=count,
        )  # fmt: skip
    progress = Progress("sample", len(labels), unit="image")
    tokens = sample_tokens(
        generator.sampler, labels, options, seed=_SEED.value, batch_size=_BATCH.value, on_batch=progress.update
    )
    progress.close()
    return generator.tokenizer.decode(tokens[shown])


def _animate(generator: Generator, labels: np.ndarray, options: Options, path: epath.Path) -> None:
    """Draws a few of the images as they appear."""
    picture = _Picture(labels, generator.class_names, _ANIMATION)
    sampler, rows = generator.sampler, picture.numbers
    batch_size = sampler.batch_size(max(_BATCH.value, len(rows)), len(labels))
    tokens = sampler.decode_numbers(labels, rows, batch_size, _SEED.value, options)
    frames = appearing(generator.tokenizer, np.asarray(tokens)[: len(rows)], sampler.orders(rows, _SEED.value, options))
    write_animation(path, [picture.draw(images) for images in frames])
    print(f"{path}: {len(rows)} of them, token by token in the order {options.scan_order}")


def main(argv):
    del argv
    keep_compiled_programs()
    folder, _ = split_step(_CHECKPOINT.value or "")
    out = epath.Path(_OUT.value or (folder / "samples" if _CHECKPOINT.value and folder.is_dir() else "samples"))
    with cli.user_errors():
        check_folder("out", out)
        if not _CHECKPOINT.value:
            raise UserError("name a run's folder with --checkpoint=RUN")
        default = jax.process_index(), jax.process_count()
        index, count = cli.share_of_work(_PROCESS_INDEX.value, _PROCESS_COUNT.value, default)
        outputs = _outputs()
        check_outputs(out, outputs)
        if count > 1 and not outputs:
            raise UserError(f"--process_count={count} is of a job: add --npz or --png")
        generator = load(_CHECKPOINT.value, _STEP.value, _TOKENIZER.value)
        labels = _requested_labels(generator)
        options = generator.options(**{flag.name: flag.value for flag in _OPTIONS if flag.value is not None})
        picture = _Picture(labels, generator.class_names, _GRID)
        try:
            images = _generate(generator, labels, options, out, picture.numbers, outputs, index, count)
            if images is None:
                print(f"{out}: the images of process {index} of {count} are written; process 0 completes the job")
                return
            write_png(out / "grid.png", picture.draw(images))
            print(f"{out / 'grid.png'}: samples of step {generator.step}, one class a row")
            for output in outputs:
                print(f"{out / FILES[output]}: {len(labels)} images, uint8 {images.shape[1:]}")
            if _ANIMATE.value:
                _animate(generator, labels, options, out / f"animation.{_ANIMATE.value}")
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            cli.fail(f"{out}: {error.strerror}; the same command goes on once there is room", cli.FAILURE)


if __name__ == "__main__":
    cli.run(main)
