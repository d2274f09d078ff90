"""Tables and a plot of what a model can do in any order."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from rar_jax.errors import UserError
from rar_jax.evaluation.intervals import Mean, mean_of
from rar_jax.evaluation.report import score_label
from rar_jax.files import write_atomically
from rar_jax.generation.any_order import Decoding, Grid, Subject
from rar_jax.generation.cells import Cell, measure_cells
from rar_jax.images.plots import Curve, plot_scores_by_steps

SECTIONS = ("steps", "verify", "inpainting", "classification")
REPORT = "orders.json"
# Increase it when the values of a cell change their meaning: a folder then keeps no mixture of both.
_VERSION = 2
PICTURE = "orders.png"
_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")
_STYLES = {"uniform": "-", "cosine": "--"}

# A setting and the means of its values over seeds.
Row = dict[str, Any]


def measure(subject: Subject, grid: Grid, sections: Sequence[str], folder: epath.PathLike) -> dict[str, list[Row]]:
    """Measures a model, and writes orders.json and, with the section steps, orders.png.

    Sections that orders.json has and that are not measured now are kept.

    Args:
      subject: the model.
      grid: the settings.
      sections: some of `SECTIONS`.
      folder: folder of the results. Measurements that were stopped there are resumed.

    Returns:
      section -> its rows.

    Raises:
      UserError: a setting cannot be used, or the folder has measurements with other settings.
    """
    folder = epath.Path(folder)
    # All cells are listed first, which checks the settings.
    parts = {
        "steps": (subject.decodings(grid), subject.decode, subject.num),
        "verify": (subject.verified_decodings(grid), subject.decode, subject.num),
        "inpainting": (subject.completions(grid), subject.complete, len(subject.labels)),
        "classification": (subject.classifications(grid), subject.classify, len(subject.labels)),
    }
    results = {}
    for section, (cells, function, images) in parts.items():
        if section not in sections or not cells:
            continue
        found = measure_cells(folder / f"{section}.jsonl", _plan(subject, images), cells, images, function)
        results[section] = summarise({cell: found[cell] for cell in cells}, subject.num_tokens)
    if not results:
        raise UserError(
            f"--sections={','.join(sections)} has nothing to measure with --steps={','.join(map(str, grid.steps))}"
        )
    origin = {"version": _VERSION, "model": subject.name, "images": subject.num}
    report = origin | _other_sections(folder, origin) | _as_json(results)
    write_atomically(folder / REPORT, json.dumps(report, indent=2) + "\n")
    if "steps" in results:
        plot_steps(folder / PICTURE, results["steps"], subject.name, subject.num_tokens)
    return results


def _other_sections(folder: epath.Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sections of an earlier report in the folder, if it has the same origin."""
    file = folder / REPORT
    earlier = json.loads(file.read_text()) if file.exists() else {}
    return earlier if origin.items() <= earlier.items() else {}


def _as_json(results: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    return {
        section: [
            {name: value._asdict() if isinstance(value, Mean) else value for name, value in row.items()} for row in rows
        ]
        for section, rows in results.items()
    }


def _plan(subject: Subject, images: int) -> dict[str, Any]:
    """Returns what the values depend on besides the cells."""
    generator = subject.generators[subject.name]
    options = dataclasses.asdict(generator.options())
    fixed = {name: value for name, value in options.items() if name not in Decoding._fields}
    origin = {name: generator.origin[name] for name in ("dtype", "platform")}
    return {"version": _VERSION, "images": images, "tokenizer": generator.tokenizer.fingerprint} | origin | fixed


def summarise(found: Mapping[Cell, Mapping[str, float]], num_tokens: int) -> list[Row]:
    """Returns a row for each setting with the means over its seeds.

    Args:
      found: the values of each cell of `generation.any_order`. All seeds of a setting have values of the same names.
      num_tokens: T.

    Returns:
      Rows with the fields of the cell but the seed, and name -> `Mean`. If the setting of a cell's `baseline` was
      measured too, `ratio` is the ratio to the baseline's mean of the first value.
    """
    groups = {}
    for cell, values in found.items():
        groups.setdefault(cell._replace(seed=0), []).append(values)
    means = {
        cell: {name: mean_of([each[name] for each in group]) for name in group[0]} for cell, group in groups.items()
    }
    rows = []
    for cell, values in means.items():
        fields = {name: value for name, value in cell._asdict().items() if name != "seed"}
        rows.append(fields | values)
        if baseline := means.get(cell.baseline(num_tokens)):
            first = next(iter(values))
            rows[-1]["ratio"] = values[first].mean / baseline[first].mean
    return rows


def plot_steps(path: epath.PathLike, rows: Sequence[Row], model: str, num_tokens: int) -> None:
    """Draws the first score against the number of steps, a panel for each guidance and a line for each order.

    Args:
      path: the PNG to write.
      rows: the section steps.
      model: the model that is measured. Others are horizontal lines.
      num_tokens: T. One token per pass is the same in every schedule.
    """
    score = next(name for name, value in rows[0].items() if isinstance(value, Mean))
    own, others = ([row for row in rows if (row["model"] == model) == wanted] for wanted in (True, False))
    steps = sorted({row["steps"] for row in own})
    orders = list(dict.fromkeys(row["scan_order"] for row in own))
    panels = {}
    for guidance in dict.fromkeys(row["guidance"] for row in own):
        curves = []
        for (order, color), (schedule, style) in itertools.product(
            zip(orders, itertools.cycle(_COLORS), strict=False), _STYLES.items()
        ):
            means = {
                row["steps"]: row[score]
                for row in own
                if (row["guidance"], row["scan_order"]) == (guidance, order)
                and (row["schedule"] == schedule or row["steps"] == num_tokens)
            }
            curves.append(_curve(means, f"{order}, {schedule}", color, style))
        for row in others:
            if row["guidance"] == guidance:
                ends = {steps[0]: row[score], steps[-1]: row[score]}
                curves.append(_curve(ends, f"{row['model']}, {row['scan_order']}, one token per pass", "black", ":"))
        panels[f"guidance {guidance}"] = curves
    plot_scores_by_steps(path, score_label(score), panels)


def _curve(means: Mapping[int, Mean], label: str, color: str, style: str) -> Curve:
    points = [(steps, means[steps].mean) for steps in sorted(means)]
    return Curve(points, label, color, style, half_widths=[means[steps].half_width or 0 for steps in sorted(means)])
