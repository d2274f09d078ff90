"""A search for the best sampling options, which goes on where it was stopped."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath

from rar_jax.errors import UserError
from rar_jax.files import hold_to_plan, read_json_lines, write_atomically
from rar_jax.progress import Progress

FILE = "tuning.jsonl"


class Setting(NamedTuple):
    """Sampling options; see `config.SampleConfig`."""

    guidance_scale: float
    guidance_power: float
    temperature: float

    def flags(self) -> str:
        """As `python -m rar_jax sample` takes them."""
        return " ".join(f"--{name}={value:g}" for name, value in self._asdict().items())


def check_numbers(flag: str, numbers: Sequence[float]) -> None:
    """Raises UserError if one of --guidance_scales, --guidance_powers or --temperatures cannot be of a setting."""
    above = flag == "guidance_powers"
    for number in numbers:
        if not (0 < number if above else 0 <= number) or number == math.inf:
            raise UserError(f"--{flag}: {number:g} must be {'above' if above else 'at least'} 0, and finite")


def grid(scales: Sequence[float], powers: Sequence[float], temperatures: Sequence[float]) -> list[Setting]:
    """Every combination, without repetitions."""
    return [
        Setting(*each) for each in itertools.product(*(sorted(set(part)) for part in (scales, powers, temperatures)))
    ]


def search(
    folder: epath.PathLike,
    plan: dict[str, Any],
    settings: Sequence[Setting],
    images: int,
    score: Callable[[Setting, Callable[[int], None]], dict[str, float]],
) -> dict[Setting, dict[str, float]]:
    """Scores every setting that was not scored by an earlier search of the same plan in this folder.

    Args:
      folder: of tuning.jsonl, whose first line is the plan and the others a setting with its scores each.
      plan: what else the scores stand on.
      settings: to try.
      images: that a setting is scored by, for the progress bar.
      score: of a setting; it is given what is to be told of each batch of images that were sampled.

    Returns:
      The scores of these settings, and of others that the folder has.

    Raises:
      UserError: the folder's search had another plan.
    """
    path = epath.Path(folder) / FILE
    lines = read_json_lines(path) or [plan]
    hold_to_plan("out", path.parent, lines[0], plan)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A last line that was cut short goes.
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
    found = {Setting(*(line.pop(name) for name in Setting._fields)): line for line in lines[1:]}
    left = [setting for setting in settings if setting not in found]
    progress = Progress("tune", len(settings) * images, (len(settings) - len(left)) * images, unit="image")
    with path.open("a") as file:
        for setting in left:
            found[setting] = score(setting, progress.update)
            file.write(json.dumps(setting._asdict() | found[setting]) + "\n")
            file.flush()
            name, value = next(iter(found[setting].items()))
            progress.update(0, f"{setting.flags()}: {name} {value:.4g}")
    progress.close()
    return found
