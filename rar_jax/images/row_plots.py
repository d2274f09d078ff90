"""A figure that compares rows of settings: their means with error bars, and their curves."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath

from rar_jax.images.plots import Line, plt, save_figure


class Bars(NamedTuple):
    """Means of all rows.

    Attributes:
      label: entry in the legend of the panel.
      means, half_widths: a mean for each row and half the height of its error bar; NaN where a row has no value.
      values: the single measurements of each row.
    """

    label: str
    means: Sequence[float]
    half_widths: Sequence[float]
    values: Sequence[Sequence[float]]


class Curves(NamedTuple):
    """A panel of curves.

    Attributes:
      title: the quantity that is drawn.
      over: label of the horizontal axis.
      lines: a line for each row, in the same order and with the same labels in all panels.
    """

    title: str
    over: str
    lines: Sequence[Line]


def plot_rows(
    path: epath.PathLike,
    title: str,
    rows: Sequence[str],
    panels: Mapping[str, Sequence[Bars]],
    curves: Sequence[Curves],
) -> None:
    """Draws panels of error bars, one row below another, and panels of curves, two panels in a line.

    Args:
      path: the PNG to write.
      title: title of the page.
      rows: labels of the rows.
      panels: title -> the means that are drawn in one panel.
      curves: the panels of curves.
    """
    count = len(panels) + len(curves)
    lines = -(-count // 2)
    size = (12, max(3.6, 0.9 + 0.3 * len(rows)) * lines)
    figure, axes = plt.subplots(lines, 2, figsize=size, layout="constrained", squeeze=False)
    places = iter(axes.flat)
    for name, bars in panels.items():
        _draw_bars(next(places), name, rows, bars)
    for panel in curves:
        axis = next(places)
        for line in panel.lines:
            steps, values = zip(*line.points, strict=True) if line.points else ((), ())
            axis.plot(steps, values, line.style, color=line.color, label=line.label or None)
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(panel.over)
        axis.grid(alpha=0.25)
    if curves:
        # One legend serves all panels, which have lines of the same rows.
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=4)
    for axis in places:
        axis.axis("off")
    figure.suptitle(title)
    save_figure(figure, path)


def _draw_bars(axis: plt.Axes, title: str, rows: Sequence[str], bars: Sequence[Bars]) -> None:
    for number, each in enumerate(bars):
        color = f"C{number}"
        heights = [row + 0.25 * (number - (len(bars) - 1) / 2) for row in range(len(rows))]
        axis.errorbar(each.means, heights, xerr=each.half_widths, fmt="o", color=color, capsize=3, label=each.label)
        for height, values in zip(heights, each.values, strict=True):
            axis.plot(values, [height] * len(values), "|", color=color, alpha=0.5)
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.25)
    if len(bars) > 1:
        axis.legend(fontsize=8)
