"""A search for the best sampling options, which goes on where it was stopped."""

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath

from rar_jax.files import write_atomically
from rar_jax.progress import Progress

FILE = "tuning.jsonl"


class Setting(NamedTuple):
    """Sampling options; see `config.SampleConfig`."""

    guidance_scale: float
    guidance_power: float
    temperature: float

    def flags(self) -> str:
        """As `python -m rar_jax.sample` takes them."""
        return " ".join(f"--{name}={value:g}" for name, value in self._asdict().items())


def grid(scales: Sequence[float], powers: Sequence[float], temperatures: Sequence[float]) -> list[Setting]:
    """Every combination.

    Raises:
      ValueError: a scale or temperature is negative, or a power is not above 0.
    """
    for name, values, fit in (
        ("guidance_scales", scales, lambda x: x >= 0),
        ("guidance_powers", powers, lambda x: x > 0),
        ("temperatures", temperatures, lambda x: x >= 0),
    ):
        if bad := [value for value in values if not fit(value)]:
            raise ValueError(f"--{name}: {bad[0]:g} must be {'above' if name == 'guidance_powers' else 'at least'} 0")
    return [
        Setting(*each) for each in itertools.product(*(sorted(set(part)) for part in (scales, powers, temperatures)))
    ]


def search(
    folder: epath.PathLike,
    plan: dict[str, Any],
    settings: Sequence[Setting],
    score: Callable[[Setting], dict[str, float]],
) -> dict[Setting, dict[str, float]]:
    """Scores every setting that was not scored by an earlier search of the same plan in this folder.

    Args:
      folder: of tuning.jsonl, whose first line is the plan and the others a setting with its scores each.
      plan: what else the scores stand on.
      settings: to try.
      score: of a setting.

    Returns:
      The scores of these settings, and of others that the folder has.

    Raises:
      ValueError: the folder's search had another plan.
    """
    path = epath.Path(folder) / FILE
    lines = _read(path)
    if lines and lines[0] != plan:
        different = [
            f"{name}={lines[0].get(name)!r}, not {value!r}"
            for name, value in plan.items()
            if lines[0].get(name) != value
        ]
        raise ValueError(f"{path} is of a search with {', '.join(different)}: choose another folder with --out")
    lines = lines or [plan]
    path.parent.mkdir(parents=True, exist_ok=True)
    # A last line that was cut short goes.
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
    found = {Setting(*(line.pop(name) for name in Setting._fields)): line for line in lines[1:]}
    left = [setting for setting in settings if setting not in found]
    progress = Progress("tune", len(settings), done=len(settings) - len(left), unit="setting")
    with path.open("a") as file:
        for setting in left:
            found[setting] = score(setting)
            file.write(json.dumps(setting._asdict() | found[setting]) + "\n")
            file.flush()
            name, value = next(iter(found[setting].items()))
            progress.update(note=f"{setting.flags()}: {name} {value:.4g}")
    progress.close()
    return found


def _read(path: epath.Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
