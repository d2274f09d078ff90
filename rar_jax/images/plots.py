"""Figures: panels of curves, scan orders and heat maps."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from etils import epath

from rar_jax.errors import UserError
from rar_jax.files import replacing
from rar_jax.orders import SCAN_ORDERS, scan_order

# Distance between the error bars of one number of steps, in doublings.
_BAR_DISTANCE = 0.05


def save_figure(figure: plt.Figure, path: epath.PathLike) -> None:
    """Writes a figure as a PNG and closes it. Creates the folder if necessary."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def plot_scan_orders(path: epath.PathLike, side: int) -> None:
    """Draws each of the six scan orders as a line through the grid, from dark (first) to light (last) positions.

    If an order is not defined for the side of the grid, its panel shows the reason. The page is like Figure 6 of the
    paper.
    """
    figure, axes = plt.subplots(2, 3, figsize=(9, 6.4), layout="constrained")
    for axis, name in zip(axes.flat, SCAN_ORDERS, strict=True):
        axis.set(title=name, xticks=[], yticks=[], xlim=(-0.6, side - 0.4), ylim=(side - 0.4, -0.6), aspect="equal")
        try:
            order = scan_order(name, side)
        except UserError as error:
            reason = textwrap.fill(str(error), 32)
            axis.text(0.5, 0.5, reason, transform=axis.transAxes, ha="center", va="center", fontsize=8)
            continue
        row, column = np.divmod(order, side)
        axis.plot(column, row, color="0.75", linewidth=1, zorder=1)
        marks = axis.scatter(column, row, c=np.arange(side**2), cmap="viridis", s=min(120, 9000 / side**2), zorder=2)
        axis.annotate(
            "start", (column[0], row[0]), textcoords="offset points", xytext=(6, 6), fontsize=8, color="crimson"
        )
    figure.colorbar(marks, ax=axes, label="step at which a position is predicted", shrink=0.8)
    figure.suptitle(f"Scan orders, {side} x {side} grid")
    save_figure(figure, path)


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a panel.

    Attributes:
      points: (step, value) pairs in the order of the steps; may be empty.
      label: entry in the panel's legend; empty for none.
      color, style, marker: as Matplotlib names them.
    """

    points: Sequence[tuple[float, float]]
    label: str = ""
    color: str = "tab:blue"
    style: str = "-"
    marker: str = ""


@dataclasses.dataclass(frozen=True)
class Curve(Line):
    """A line with error bars.

    Attributes:
      half_widths: half the height of the bar of each point.
    """

    half_widths: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class Panel:
    """A panel of a page of curves.

    Attributes:
      title: the quantity that is drawn.
      lines: the lines, drawn over one another in this order.
      limits: limits of the vertical axis; by default they fit the lines.
    """

    title: str
    lines: Sequence[Line]
    limits: tuple[float, float] | None = None


def plot_panels(
    path: epath.PathLike,
    panels: Sequence[Panel],
    *,
    shaded: tuple[str, tuple[float, float]] | None = None,
    legend: Mapping[str, str] | None = None,
) -> None:
    """Draws panels of lines over the steps of a run, two in a row.

    Args:
      path: the PNG to write.
      panels: at least one.
      shaded: name and range of the steps that are shaded in every panel.
      legend: name -> color, written below all panels.
    """
    steps = [step for panel in panels for line in panel.lines for step, _ in line.points] or [0, 1]
    margin = 0.05 * (max(steps) - min(steps)) or 1
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11.5, 3.75 * rows), layout="constrained", squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, panel, shaded)
        # The shaded range may lie far beyond a short run.
        axis.set_xlim(min(steps) - margin, max(steps) + margin)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    if legend:
        handles = [plt.Line2D([], [], color=color, label=textwrap.fill(name, 130)) for name, color in legend.items()]
        figure.legend(handles=handles, loc="outside lower left", fontsize=8)
    save_figure(figure, path)


def _draw_panel(axis: plt.Axes, panel: Panel, shaded: tuple[str, tuple[float, float]] | None) -> None:
    for line in panel.lines:
        x, y = zip(*line.points, strict=True) if line.points else ((), ())
        axis.plot(x, y, line.style, color=line.color, marker=line.marker, label=line.label if line.points else None)
    if shaded is not None:
        name, (start, end) = shaded
        axis.axvspan(start, end, color="tab:purple", alpha=0.06, label=name)
    axis.set(title=panel.title, xlabel="step")
    axis.title.set_fontsize(10)
    if panel.limits is not None:
        axis.set_ylim(panel.limits)
    axis.grid(alpha=0.25)
    if any(line.label for line in panel.lines):
        axis.legend(fontsize=8)


def plot_likelihoods(path: epath.PathLike, images: np.ndarray, positions: np.ndarray) -> None:
    """Draws a histogram of images, and the mean of each grid position.

    Args:
      path: PNG file.
      images: float [N], nats per token of each image.
      positions: float [T], nats of each position, in row-major order.
    """
    side = round(len(positions) ** 0.5)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    left.hist(images, bins=40, color="tab:blue")
    left.set(title=f"{len(images):,} images", xlabel="nats per token")
    drawn = right.imshow(positions.reshape(side, side), cmap="magma")
    right.set(title="Mean of each position", xticks=[], yticks=[])
    figure.colorbar(drawn, ax=right, label="nats")
    save_figure(figure, path)


def plot_scores_by_steps(path: epath.PathLike, score: str, panels: Mapping[str, Sequence[Curve]]) -> None:
    """Draws a score against the number of passes that draw all tokens, on a logarithmic scale.

    Args:
      path: PNG file.
      score: name of the score.
      panels: title -> curves, side by side with the same vertical axis.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1.5 + 5 * len(panels), 5.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=True):
        for number, curve in enumerate(curves):
            x, y = zip(*curve.points, strict=True)
            # The curves are shifted a little, so that error bars do not cover each other.
            shift = 2 ** (_BAR_DISTANCE * (number - (len(curves) - 1) / 2))
            axis.errorbar(
                np.multiply(x, shift), y, curve.half_widths, linestyle=curve.style, color=curve.color,
                label=curve.label, marker=".", elinewidth=1, capsize=2,
            )  # fmt: skip
        ticks = sorted({step for curve in curves for step, _ in curve.points})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, ticks)
        axis.set(title=title, xlabel="steps (passes of the network that draw all tokens)")
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel(score)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=-(-len(labels) // 2), fontsize=8)
    save_figure(figure, path)


def plot_heat_maps(
    path: epath.PathLike,
    axes_names: tuple[str, str, str],
    values: Mapping[tuple[float, float, float], float],
    best: tuple[float, float, float],
    title: str,
) -> None:
    """Draws a heat map of the first two coordinates for each value of the third, and frames the best value.

    Args:
      path: the PNG to write.
      axes_names: the names of the coordinates.
      values: coordinates -> value. Cells without a value stay empty.
      best: the coordinates of the best value.
      title: the title of the page.
    """
    rows, columns, pages = (sorted({place[axis] for place in values}) for axis in range(3))
    figure, axes = plt.subplots(
        1, len(pages), figsize=(1.6 + (1 + 0.8 * len(columns)) * len(pages), 1.6 + 0.55 * len(rows)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    least, most = min(values.values()), max(values.values())
    for axis, page in zip(axes.flat, pages, strict=True):
        grid = np.array([[values.get((row, column, page), np.nan) for column in columns] for row in rows])
        marks = axis.imshow(grid, cmap="viridis_r", vmin=least, vmax=most, aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            if np.isfinite(value):
                place = (rows[i], columns[j], page)
                weight, edge = ("bold", "crimson") if place == best else ("normal", "none")
                box = {"facecolor": (1, 1, 1, 0.75), "edgecolor": edge, "linewidth": 1.5, "pad": 2}
                axis.text(j, i, f"{value:.4g}", ha="center", va="center", fontsize=8, weight=weight, bbox=box)
        axis.set(title=f"{axes_names[2]} {page:g}", xlabel=axes_names[1], ylabel=axes_names[0])
        axis.set_xticks(range(len(columns)), [f"{each:g}" for each in columns])
        axis.set_yticks(range(len(rows)), [f"{each:g}" for each in rows])
    figure.colorbar(marks, ax=axes)
    # About twelve letters of this size fit in an inch.
    figure.suptitle(textwrap.fill(title, int(12 * figure.get_figwidth())), fontsize=10)
    save_figure(figure, path)
