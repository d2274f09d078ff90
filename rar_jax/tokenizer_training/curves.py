"""Draws the metrics of a tokenizer's run (metrics.jsonl) as panels of curves."""

from collections.abc import Sequence

from etils import epath

from rar_jax.images.plots import Line, Panel, plot_panels
from rar_jax.training.curves import Entries, points
from rar_jax.training.evaluators.evaluator import Measure


def plot_run(path: epath.PathLike, entries: Entries, measures: Sequence[Measure]) -> None:
    """Draws the loss, the learning rate and what was measured on held-out images.

    Args:
      path: the PNG to write.
      entries: the lines of metrics.jsonl.
      measures: the measures of the run's evaluators.
    """
    panels = [
        Panel("Loss of training batches", [Line(points(entries, "train/loss"), color="0.6")]),
        Panel("Learning rate", [Line(points(entries, "train/learning_rate"), color="tab:green")]),
    ]
    panels += [Panel(measure.title, [Line(points(entries, measure.name), marker=".")]) for measure in measures]
    plot_panels(path, panels)
