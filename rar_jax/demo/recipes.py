"""The commands and Python calls that give the images of the page again."""

import shlex
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

CANVAS, MASK = "canvas.png", "mask.png"


class Model(NamedTuple):
    """How the model was named on the command line.

    Attributes:
      checkpoint, step, tokenizer: the flags of these names; None where one was not given.
    """

    checkpoint: str
    step: int | None
    tokenizer: str | None

    def given(self) -> dict[str, Any]:
        """Returns the flags that were given."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def load(self) -> str:
        """Returns the Python statements that load the model."""
        rest = "".join(f", {name}={value!r}" for name, value in self.given().items() if name != "checkpoint")
        return f"from rar_jax.generate import load\n\ngenerator = load({self.checkpoint!r}{rest})\n"


def _command(name: str, **flags: Any) -> str:
    return " ".join(["python -m rar_jax", name, *(shlex.quote(f"--{flag}={value}") for flag, value in flags.items())])


def _call(arguments: dict[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in arguments.items())


def sample_recipe(
    model: Model, classes: Sequence[str], labels: Sequence[int], seed: int, options: dict[str, Any]
) -> tuple[str, str]:
    """Returns the command and the Python program that sample the same images.

    Args:
      model: the model.
      classes: the classes that were chosen, as --classes takes them.
      labels: the class of each image.
      seed: seed of the images.
      options: the sampling options that differ from the run's.
    """
    flags = model.given() | {"classes": ",".join(classes), "num": len(labels), "png": True, "seed": seed} | options
    # Each recipe has a folder of its own, because a job's folder is refused to another job.
    command = _command("sample", **flags, out=f"samples_{zlib.crc32(repr(flags).encode()):08x}")
    labels = [int(label) for label in labels]
    return command, model.load() + f"images = generator.generate({labels}{_call({'seed': seed} | options)})"


def fill_recipe(
    model: Model, name: str, label: int, results: int, seed: int, options: dict[str, Any]
) -> tuple[str, str]:
    """Returns the command and the Python program that fill the same part of an image, read from two files.

    Args:
      model, seed, options: see `sample_recipe`.
      name: the class of the filling, as --classes takes it.
      label: its label.
      results: the number of fillings.
    """
    files = {"images": CANVAS, "mask": MASK, "classes": name, "results": results}
    command = _command("edit", **model.given(), **files, seed=seed, **options)
    program = (
        "import numpy as np\nfrom PIL import Image\n"
        f"{model.load()}"
        f"image, mask = np.array(Image.open({CANVAS!r})), np.array(Image.open({MASK!r}).convert('L')) > 127\n"
        f"images = generator.edit(image[None].repeat({results}, 0), mask, [{label}] * {results}"
        f"{_call({'seed': seed} | options)})"
    )
    return command, program
