"""What the plans of a tokenizer and of a RAR have in common: the images, the machine, and a part of a plan."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import tqdm

# The fields of a config that differ from its recipe, by section. Fields without a section are in the section "".
Fields = dict[str, dict[str, Any]]

# Share of the rate of matrix products that a training step reaches. It is used only to choose sizes, before steps are
# timed. Measured on a CPU: 42% for the tokenizer of the glyphs, 73% for RAR-B.
UTILISATION = 0.35
# Evaluations and checkpoints of a run.
EVALUATIONS = 5
CHECKPOINTS = 20


class Images(NamedTuple):
    """The images to train on.

    Attributes:
      train, heldout: folders of the training and the held-out images.
      num_train, num_heldout: numbers of images.
      num_classes: number of classes.
      image_size: side in pixels.
      reading_seconds: time of a core to read, decode and cut a training image, s.
    """

    train: str
    heldout: str
    num_train: int
    num_heldout: int
    num_classes: int
    image_size: int
    reading_seconds: float


@dataclasses.dataclass(frozen=True)
class Machine:
    """The machine to train on.

    Attributes:
      name: a name for the plan.
      num_devices: number of devices.
      flop_rate: rate of matrix products of all devices together, FLOP/s.
      dtype: compute dtype.
      cores: number of CPU cores.
      workers: number of processes to decode images in; 0: the training process decodes them.
      step_seconds: returns the time of a training step of a config, in s, without reading images.
    """

    name: str
    num_devices: int
    flop_rate: float
    dtype: str
    cores: int
    workers: int
    step_seconds: Callable[[Any], float]

    def seconds(self, flops: float) -> float:
        """Returns about how long so many FLOPs of training take, in s."""
        return flops / (UTILISATION * self.flop_rate)

    def reading_seconds(self, images: Images, count: int) -> float:
        """Returns the time to read `count` images with the workers or, without workers, with all cores, in s."""
        return count * images.reading_seconds / (self.workers or self.cores)

    def batch_size(self, wanted: int) -> int:
        """Returns the smallest batch size of at least `wanted` images that the devices can share."""
        return -(-wanted // self.num_devices) * self.num_devices


class Part(NamedTuple):
    """The plan of one training.

    Attributes:
      fields: the fields of its config.
      lines: what was chosen, why, and how long it takes.
    """

    fields: Fields
    lines: list[str]


def nested(recipe: dict[str, Any], fields: Fields) -> dict[str, Any]:
    """Returns a recipe, a nested dictionary, with changed fields."""
    changed = recipe | fields.get("", {})
    return changed | {name: recipe[name] | values for name, values in fields.items() if name}


def duration(seconds: float) -> str:
    """Returns a text for a time, such as 4 min or 2:30 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{tqdm.tqdm.format_interval(seconds)[:-3]} h"
