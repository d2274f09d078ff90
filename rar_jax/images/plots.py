"""Figures of a run: its curves, and the scan orders."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from etils import epath

from rar_jax.errors import UserError
from rar_jax.files import replacing
from rar_jax.orders import SCAN_ORDERS, scan_order


def save_figure(figure: plt.Figure, path: epath.PathLike) -> None:
    """Writes a PNG and closes the figure; its folder is made if need be."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def plot_scan_orders(path: epath.PathLike, side: int) -> None:
    """The six orders on one sheet (the paper's Figure 6): a line through the grid, first positions dark, last light.

    An order that the side does not admit is left out, and its panel says why.
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


def _series(entries: Sequence[dict[str, Any]], name: str) -> tuple[Sequence[float], Sequence[float]]:
    """The steps at which something was logged, and its values."""
    points = [(entry["step"], entry[name]) for entry in entries if name in entry]
    return tuple(zip(*points, strict=True)) if points else ((), ())


# Scores along a run, as logged: score/NAME_guided and score/NAME_unguided.
_SCORE_TITLES = {
    "fid": "FID of samples",
    "inception_score": "Inception Score of samples",
    "frechet_pixels": "Frechet distance of pixels of samples (not FID)",
    "svm_accuracy": "Samples recognised as their class",
}
_GUIDANCE_STYLES = (("guided", "-"), ("unguided", "--"))


def _logged_scores(entries: Sequence[dict[str, Any]]) -> list[str]:
    logged = {name for entry in entries for name in entry}
    return [name for name in _SCORE_TITLES if f"score/{name}_guided" in logged]


def plot_curves(path: epath.PathLike, entries: Sequence[dict[str, Any]], anneal_steps: tuple[int, int]) -> None:
    """Losses, accuracy, learning rate and r over a run, and the scores of its samples where there are any.

    Args:
      path: of the PNG.
      entries: the lines of metrics.jsonl.
      anneal_steps: the steps between which r falls, marked in every panel.
    """
    scores = _logged_scores(entries)
    rows = 2 + -(-len(scores) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 3.75 * rows), layout="constrained", sharex=True)
    for axis, kind, title in (
        (axes[0, 0], "loss", "Loss (nats a token)"),
        (axes[0, 1], "accuracy", "Accuracy of the next token"),
    ):
        axis.plot(*_series(entries, f"train/{kind}"), color="0.8", label="training batches, in their drawn orders")
        for split, style in (("train", "--"), ("heldout", "-")):
            for order, color in (("target", "tab:blue"), ("random", "tab:orange")):
                label = f"{split}, {order} order"
                axis.plot(*_series(entries, f"{split}/{order}_{kind}"), style, color=color, label=label)
        axis.set(title=title)
    for axis, name, title in (
        (axes[1, 0], "train/learning_rate", "Learning rate"),
        (axes[1, 1], "train/r", "r: probability of a random order"),
    ):
        axis.plot(*_series(entries, name), color="tab:green")
        axis.set(title=title)
    axes[1, 1].set_ylim(-0.05, 1.05)
    for axis, name in zip(axes[2:].flat, scores, strict=False):
        for guidance, style in _GUIDANCE_STYLES:
            points = _series(entries, f"score/{name}_{guidance}")
            axis.plot(*points, style, marker=".", color="tab:red", label=guidance)
        axis.set(title=_SCORE_TITLES[name])
        axis.legend(fontsize=8)
    shown = axes[0, 0].get_xlim()
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.axvspan(*anneal_steps, color="tab:purple", alpha=0.06, label="annealing window")
        axis.set_xlim(shown)  # The window may lie far beyond a short run.
    for axis in axes[-1]:
        axis.set_xlabel("step")
    axes[0, 0].legend(fontsize=8)
    save_figure(figure, path)


def plot_runs(path: epath.PathLike, runs: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Losses and scores of several runs on one page.

    Args:
      path: of the PNG.
      runs: what each is called -> the lines of its metrics.jsonl.
    """
    panels = [
        ("train/loss", "Loss of training batches, in their drawn orders (nats a token)"),
        ("heldout/target_loss", "Held-out loss, target order (nats a token)"),
        ("heldout/random_loss", "Held-out loss, random order (nats a token)"),
    ]
    everything = [entry for entries in runs.values() for entry in entries]
    panels += [(f"score/{name}", _SCORE_TITLES[name]) for name in _logged_scores(everything)]
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(12, 3.75 * rows), layout="constrained", squeeze=False)
    for axis, (name, title) in zip(axes.flat, panels, strict=False):
        for i, entries in enumerate(runs.values()):
            if name.startswith("score/"):
                for guidance, style in _GUIDANCE_STYLES:
                    axis.plot(*_series(entries, f"{name}_{guidance}"), style, marker=".", color=f"C{i}")
                title_end = ", guided and (dashed) not"
            else:
                axis.plot(*_series(entries, name), color=f"C{i}")
                title_end = ""
        axis.set(title=title + title_end, xlabel="step")
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    handles = [plt.Line2D([], [], color=f"C{i}", label=textwrap.fill(name, 130)) for i, name in enumerate(runs)]
    figure.legend(handles=handles, loc="outside lower left", fontsize=8)
    save_figure(figure, path)


def plot_heat_maps(
    path: epath.PathLike,
    axes_names: tuple[str, str, str],
    values: Mapping[tuple[float, float, float], float],
    title: str,
) -> None:
    """A heat map of the first two coordinates for each value of the third; the smallest value is framed.

    Args:
      path: of the PNG.
      axes_names: of the coordinates.
      values: coordinates -> value; there may be gaps.
      title: of the page.
    """
    rows, columns, pages = (sorted({place[axis] for place in values}) for axis in range(3))
    figure, axes = plt.subplots(
        1, len(pages), figsize=(1.6 + (1 + 0.8 * len(columns)) * len(pages), 1.6 + 0.55 * len(rows)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    least, most = min(values.values()), max(values.values())
    best = min(values, key=values.get)
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
    # Twelve letters of this size are an inch.
    figure.suptitle(textwrap.fill(title, int(12 * figure.get_figwidth())), fontsize=10)
    save_figure(figure, path)
