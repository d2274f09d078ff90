"""Plans the training of a tokenizer and of a RAR on a folder of images, for the time that there is on this machine.

Sizes are chosen by the formulas of `performance.costs` and a measured rate of matrix products. Then some steps of the
chosen programs are timed, and the numbers of steps and epochs follow from these times.
"""

import textwrap
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rar_jax.config import mesh_shape
from rar_jax.data.image_loader import Crops, SourcePictures, TrainImages
from rar_jax.data.sources import ClassFolders, Source
from rar_jax.data.split import PARTS
from rar_jax.errors import UserError
from rar_jax.files import write_atomically
from rar_jax.models.sizes import VQGANConfig
from rar_jax.own_images.planned import Fields, Images, Machine, duration
from rar_jax.own_images.rar_plan import plan_rar
from rar_jax.own_images.tokenizer_plan import plan_tokenizer, tokenizer_config
from rar_jax.parallel.cores import usable_cores
from rar_jax.parallel.mesh import data_mesh, make_mesh
from rar_jax.performance.benchmarks import train, train_tokenizer
from rar_jax.performance.benchmarks.steps import time_steps
from rar_jax.performance.ceilings import product_rate
from rar_jax.performance.costs import vqgan_train_flops
from rar_jax.tokenizer_config import ImageDataConfig
from rar_jax.tokenizer_training.program import make_program
from rar_jax.tokenizer_training.run import open_inception

# Names of the files that a plan is written to.
TOKENIZER, RAR, TEXT = "tokenizer.py", "rar.py", "plan.txt"
# Share of the time for the tokenizer. The RAR has the rest.
_TOKENIZER_SHARE = 1 / 3
_TIMED_STEPS, _TIMED_IMAGES = 5, 30
_MOST_WORKERS = 16


def open_split(folder: epath.PathLike, image_size: int) -> Images:
    """Returns the images of a folder that `data.split.split_images` made.

    Raises:
      UserError: there are no images.
    """
    train, heldout = (ClassFolders(epath.Path(folder) / part) for part in PARTS)
    numbers = len(train), len(heldout), len(train.class_names)
    return Images(train.name, heldout.name, *numbers, image_size, _reading_seconds(train, image_size))


def this_machine() -> Machine:
    """Measures this machine."""
    cores, count = usable_cores(), jax.device_count()
    # The cores of a machine without an accelerator are busy with the training itself.
    name, dtype, workers = f"{cores} CPU cores", "float32", 0
    if jax.default_backend() != "cpu":
        name, dtype, workers = f"{count} x {jax.devices()[0].device_kind}", "bfloat16", min(_MOST_WORKERS, cores - 1)
    rate = count * product_rate(jnp.dtype(dtype), brief=True)
    return Machine(name, count, rate, dtype, cores, workers, _step_seconds)


def _step_seconds(config: Any) -> float:
    """Times some training steps of a config, on random data."""
    if config.kind == "vqgan":
        program, batch = make_program(config, open_inception(config)), train_tokenizer.synthetic_batch(config)
        mesh = data_mesh("config.train.batch_size", config.train.batch_size)
    else:
        program, batch = train.make_program(config), train.synthetic_batch(config)
        mesh = make_mesh(mesh_shape(config, jax.device_count()))
    try:
        return time_steps(program, mesh, batch, _TIMED_STEPS).median
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"a training step of the {config.name} does not fit the memory of the devices: set a smaller --image_size"
        ) from None


def _reading_seconds(source: Source, image_size: int) -> float:
    """Times the reading, decoding and cutting of some training images by one core: s per image."""
    recipe, count = ImageDataConfig(), min(_TIMED_IMAGES, len(source))
    crops = Crops(image_size, recipe.min_crop, recipe.flip)
    batches = TrainImages(SourcePictures(source), crops, count, num_batches=1, seed=0, rows=np.arange(count))
    began = time.perf_counter()
    batches[0]
    return (time.perf_counter() - began) / count


def write_plan(
    folder: epath.PathLike,
    images: Images,
    machine: Machine,
    hours: float,
    published: tuple[str, VQGANConfig] | None = None,
    inception: str = "",
) -> str:
    """Plans both trainings, and writes their config files and the text of the plan.

    Args:
      folder: folder of the files, which will also hold the runs.
      images, machine: what there is.
      hours: time for both trainings.
      published: see `tokenizer_plan.plan_tokenizer`.
      inception: weights of the FID Inception network for the tokenizer's perceptual loss, or an empty text.

    Returns:
      The text: what was chosen, why, and how long it takes.

    Raises:
      UserError: the time is too short, or the tokenizer does not fit the images.
    """
    folder, seconds = epath.Path(folder), 3600 * hours
    folder.mkdir(parents=True, exist_ok=True)
    first = plan_tokenizer(images, machine, _TOKENIZER_SHARE * seconds, published, inception)
    codes = tokenizer_config(first.fields).model
    second = plan_rar(images, machine, (1 - _TOKENIZER_SHARE) * seconds, codes, str(folder))
    # Encoding takes about half of a forward pass, and a training step three.
    num_images = images.num_train + images.num_heldout
    encoding = num_images * machine.seconds(vqgan_train_flops(codes, images.image_size) / 6)
    encoding += machine.reading_seconds(images, num_images)
    text = "\n".join(
        [
            f"{images.num_train:,} training images and {images.num_heldout:,} held-out images of "
            f"{images.num_classes:,} classes, cut to {images.image_size} x {images.image_size} pixels.",
            f"{duration(seconds)} of training on {machine.name}; matrices are multiplied at "
            f"{machine.flop_rate / 1e9:,.0f} GFLOP/s.",
            *first.lines,
            f"Tokenization: about {duration(encoding)}.",
            *second.lines,
        ]
    )
    write_atomically(folder / TOKENIZER, config_file("rar_jax.tokenizer_config", "tokenizer", first.fields))
    write_atomically(folder / TEXT, text + "\n")
    # Written last: its presence means that the plan is complete.
    write_atomically(folder / RAR, config_file("rar_jax.config", "imagenet", second.fields))
    return text


def config_file(module: str, recipe: str, fields: Fields) -> str:
    """Returns the text of a config file that changes fields of a recipe.

    Args:
      module, recipe: where the recipe is: the function `recipe` of `module`.
      fields: the fields that differ from it.
    """
    lines = [f"config = {recipe}()", *(f"config.{name} = {value!r}" for name, value in fields[""].items())]
    for section, values in fields.items():
        if section:
            given = ", ".join(f"{name}={value!r}" for name, value in values.items())
            lines.append(f"config.{section}.update({given})")
    body = textwrap.indent("\n".join([*lines, "return config"]), "    ")
    return f'"""Planned by python -m rar_jax plan."""\n\nfrom {module} import {recipe}\n\n\ndef get_config():\n{body}\n'
