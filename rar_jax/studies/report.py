"""The table and the figure of a study: means over seeds, 95% intervals, and which rows differ from the best."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats
from etils import epath

from rar_jax.evaluation.intervals import Mean, holm, mean_of, paired_p_value
from rar_jax.evaluation.tables import table
from rar_jax.files import write_atomically
from rar_jax.images.plots import Line
from rar_jax.images.row_plots import Bars, Curves, plot_rows
from rar_jax.performance.costs import train_flops
from rar_jax.studies.plan import CURVES, Cell, Study, scores_of
from rar_jax.studies.run import Result

TABLE, FIGURE = "table.txt", "figure.png"
# Lines of more than ten rows, which is the number of colours.
_STYLES = ("-", "--", ":", "-.")

# Titles of the panels that a study of sizes also draws against FLOPs, as Figure 4 of the paper does.
_AGAINST_FLOPS = [title for name, title in CURVES.items() if name.startswith(("train/", "score/"))]

# Row label -> seed -> scores.
Scores = dict[str, dict[int, dict[str, float]]]


def scores_by_row(study: Study, found: Sequence[Result]) -> Scores:
    """Returns the scores of the finished cells. Rows without any are left out."""
    scores = {row.label: {} for row in study.rows}
    for cell in found:
        if "scores" in cell:
            scores[cell["row"]][cell["seed"]] = cell["scores"]
    return {label: seeds for label, seeds in scores.items() if seeds}


def means(scores: Scores, name: str) -> dict[str, Mean]:
    """Returns the mean of a score over the seeds of each row that has it."""
    values = {label: [each[name] for each in seeds.values() if name in each] for label, seeds in scores.items()}
    return {label: mean_of(each) for label, each in values.items() if each}


def differences(scores: Scores, name: str) -> dict[str, float]:
    """Tests which rows differ from the one with the smallest mean.

    Returns:
      Row label -> p-value of the paired two-sided t-test over the seeds that the row shares with the best one, after
      Holm's correction for the number of rows. The best row, and rows that share fewer than two seeds, are left out.
    """
    found = means(scores, name)
    # In a study that is not finished, the rows that have this score may have no cells yet.
    if not found:
        return {}
    best = min(found, key=lambda label: found[label].mean)
    values = {}
    for label in found:
        shared = sorted(seed for seed in scores[label].keys() & scores[best].keys())
        pair = [[scores[each][seed][name] for seed in shared] for each in (label, best)]
        if label != best and (p_value := paired_p_value(*pair)) is not None:
            values[label] = p_value
    return dict(zip(values, holm(list(values.values())), strict=True))


def rank_correlation(study: Study, scores: Scores, name: str) -> tuple[float, int] | None:
    """Returns Spearman's correlation of a score with the paper's FID, and the number of rows that have both.

    Returns None for fewer than three rows.
    """
    found = means(scores, name)
    pairs = [(found[row.label].mean, row.paper) for row in study.rows if row.label in found and row.paper is not None]
    if len(pairs) < 3:
        return None
    return float(scipy.stats.spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs)


def report_lines(study: Study, scores: Scores) -> list[str]:
    """Returns the lines of the table and what is below it."""
    known, columns = scores_of(study), {name: means(scores, name) for name in study.columns}
    p_values = differences(scores, study.compare)
    rows = []
    for row in study.rows:
        if row.label not in scores:
            continue
        values = {known[name].label: column.get(row.label, "") for name, column in columns.items()}
        paper = {"paper's FID": f"{row.paper:.2f}"} if row.paper is not None else {}
        p_value = {"p": f"{p_values[row.label]:.2g}" if row.label in p_values else ""}
        rows.append({"row": row.label, "seeds": len(scores[row.label])} | values | p_value | paper)
    lines = [study.title, "", *table(rows), ""]
    lines.append("Means over seeds and 95% intervals by Student's t; losses in nats per token, of held-out images.")
    lines.append(
        f"p: paired two-sided t-test of the {known[study.compare].label} against the best row, after Holm's correction "
        "for the rows."
    )
    for name in dict.fromkeys((study.compare, *study.columns)):
        if known[name].compared and (found := rank_correlation(study, scores, name)) is not None:
            lines.append(
                f"Rank correlation of the {known[name].label} with the paper's FID: {found[0]:.2f}, {found[1]} rows."
            )
    return lines


def write_report(study: Study, cells: Sequence[Cell], found: Sequence[Result], folder: epath.PathLike) -> list[str]:
    """Writes table.txt and figure.png.

    Args:
      study: the study.
      cells: its cells.
      found: the cells of results.json, of which at least one is finished.
      folder: the study's folder.

    Returns:
      The lines of the table.
    """
    folder, scores = epath.Path(folder), scores_by_row(study, found)
    lines = report_lines(study, scores)
    write_atomically(folder / TABLE, "\n".join(lines) + "\n")
    plot_rows(folder / FIGURE, study.title, list(scores), _panels(study, scores), _curves(cells, scores, found))
    return lines


def _panels(study: Study, scores: Scores) -> dict[str, list[Bars]]:
    """Returns a panel for the score that is compared, and one for the Frechet distances."""
    known = scores_of(study)
    panels = {known[study.compare].label: [_bars(scores, study.compare, known[study.compare].label)]}
    if distances := [name for name in study.columns if "frechet" in name]:
        panels["Frechet distance of samples"] = [_bars(scores, name, known[name].label) for name in distances]
    return panels


def _bars(scores: Scores, name: str, label: str) -> Bars:
    found = means(scores, name)
    missing = Mean(math.nan, None, ())
    rows = [found.get(label, missing) for label in scores]
    return Bars(label, [row.mean for row in rows], [row.half_width or 0 for row in rows], [row.values for row in rows])


def _curves(cells: Sequence[Cell], scores: Scores, found: Sequence[Result]) -> list[Curves]:
    """Returns the panels of what was measured during training, means over the finished seeds of each row."""
    panels = []
    for name, title in CURVES.items():
        lines = [_line(found, label, number, name) for number, label in enumerate(scores)]
        if any(line.points for line in lines):
            panels.append(Curves(title, "step", lines))
    flops = {cell.row.label: cell.config.train.batch_size * train_flops(cell.config.model) for cell in cells}
    if len(set(flops.values())) > 1:
        panels += [_against_flops(panel, flops) for panel in panels if panel.title in _AGAINST_FLOPS]
    return panels


def _against_flops(panel: Curves, flops: Mapping[str, float]) -> Curves:
    """Returns a panel that is drawn against FLOPs instead of steps. `flops` has the FLOPs of a step of each row."""
    lines = [
        dataclasses.replace(line, points=[(step * flops[line.label], value) for step, value in line.points])
        for line in panel.lines
    ]
    return Curves(panel.title, "FLOPs", lines)


def _line(found: Sequence[Result], label: str, number: int, name: str) -> Line:
    """Returns the mean curve of a row, the `number`-th one. Its seeds were evaluated at the same steps."""
    curves = [cell["curves"][name] for cell in found if cell["row"] == label and name in cell.get("curves", ())]
    points = [(step, value) for step, value in np.mean(curves, axis=0)] if curves else []
    return Line(points, label, f"C{number % 10}", _STYLES[number // 10 % len(_STYLES)])
