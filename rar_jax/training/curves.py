"""Draws the metrics of runs (metrics.jsonl) as panels of curves."""

from collections.abc import Mapping, Sequence

from etils import epath

from rar_jax.images.plots import Line, Panel, plot_panels
from rar_jax.training.evaluators import heldout, scores
from rar_jax.training.evaluators.evaluator import Measure
from rar_jax.training.metrics import Entries, points

_MEASURES = heldout.MEASURES + scores.MEASURES
# Colours and styles of the measures of one panel.
_STYLES = (("tab:blue", "-"), ("tab:orange", "-"), ("tab:blue", "--"), ("tab:orange", "--"))
# Measures that runs are compared by, besides the scores of samples.
_COMPARED_LOSSES = ("heldout/target_loss", "heldout/random_loss")


def plot_run(path: epath.PathLike, entries: Entries, anneal_steps: tuple[int, int]) -> None:
    """Draws losses, accuracy, learning rate and r over a run, and the scores of its samples if there are any.

    Args:
      path: the PNG to write.
      entries: the lines of metrics.jsonl.
      anneal_steps: the steps between which r falls, which are shaded.
    """
    panels = [
        Panel(heldout.LOSS_TITLE, [_training_line(entries, "loss"), *_measure_lines(entries, heldout.LOSS_TITLE)]),
        Panel(
            heldout.ACCURACY_TITLE,
            [_training_line(entries, "accuracy"), *_measure_lines(entries, heldout.ACCURACY_TITLE)],
        ),
        Panel("Learning rate", [Line(points(entries, "train/learning_rate"), color="tab:green")]),
        Panel(
            "r: probability of a random order",
            [Line(points(entries, "train/r"), color="tab:green")],
            limits=(-0.05, 1.05),
        ),
    ]
    panels += [Panel(title, _measure_lines(entries, title)) for title in _logged_titles(scores.MEASURES, entries)]
    plot_panels(path, panels, shaded=("annealing window", anneal_steps))


def plot_runs(path: epath.PathLike, runs: Mapping[str, Entries]) -> None:
    """Draws losses and scores of several runs on one page.

    Args:
      path: the PNG to write.
      runs: name -> the lines of its metrics.jsonl.
    """
    colors = [f"C{i}" for i in range(len(runs))]

    def panel(title: str, names: Sequence[str]) -> Panel:
        return Panel(
            title,
            [
                Line(points(entries, name), style=style, color=color)
                for color, entries in zip(colors, runs.values(), strict=True)
                for name, style in zip(names, ("-", "--"), strict=False)
            ],
        )

    panels = [panel("Loss of training batches, in their drawn orders (nats per token)", ["train/loss"])]
    for measure in heldout.MEASURES:
        if measure.name in _COMPARED_LOSSES:
            panels.append(panel(f"{measure.title}: {measure.label}", [measure.name]))
    everything = [entry for entries in runs.values() for entry in entries]
    for title in _logged_titles(scores.MEASURES, everything):
        measures = [measure for measure in scores.MEASURES if measure.title == title]
        labels = f"{measures[0].label}, and dashed {measures[1].label}"
        panels.append(panel(f"{title}: {labels}", [measure.name for measure in measures]))
    plot_panels(path, panels, legend=dict(zip(runs, colors, strict=True)))


def _training_line(entries: Entries, kind: str) -> Line:
    return Line(points(entries, f"train/{kind}"), "training batches, in their drawn orders", "0.8")


def _measure_lines(entries: Entries, title: str) -> list[Line]:
    """Returns a line for each measure with a title."""
    measures = [measure for measure in _MEASURES if measure.title == title]
    return [
        Line(points(entries, measure.name), measure.label, color, style, marker=".")
        for measure, (color, style) in zip(measures, _STYLES, strict=False)
    ]


def _logged_titles(measures: Sequence[Measure], entries: Entries) -> list[str]:
    """Returns the titles of the measures that were logged, in the order in which they are declared."""
    logged = {name for entry in entries for name in entry}
    return list(dict.fromkeys(measure.title for measure in measures if measure.name in logged))
