"""Figures of a run: its curves, and the scan orders."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from etils import epath

from rar_jax.orders import SCAN_ORDERS, scan_order


def save_figure(figure: plt.Figure, path: epath.PathLike) -> None:
    """Writes a PNG and closes the figure; its folder is made if need be."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
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
        except ValueError as error:
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


def plot_curves(path: epath.PathLike, entries: Sequence[dict[str, Any]], anneal_steps: tuple[int, int]) -> None:
    """Losses, accuracy, learning rate and r over a run.

    Args:
      path: of the PNG.
      entries: the lines of metrics.jsonl.
      anneal_steps: the steps between which r falls, marked in every panel.
    """

    def series(name):
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        return tuple(zip(*points, strict=True)) if points else ((), ())

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained", sharex=True)
    for axis, kind, title in (
        (axes[0, 0], "loss", "Loss (nats a token)"),
        (axes[0, 1], "accuracy", "Accuracy of the next token"),
    ):
        axis.plot(*series(f"train/{kind}"), color="0.8", label="training batches, in their drawn orders")
        for split, style in (("train", "--"), ("heldout", "-")):
            for order, color in (("target", "tab:blue"), ("random", "tab:orange")):
                label = f"{split}, {order} order"
                axis.plot(*series(f"{split}/{order}_{kind}"), style, color=color, label=label)
        axis.set(title=title)
        axis.grid(alpha=0.25)
    for axis, name, title in (
        (axes[1, 0], "train/learning_rate", "Learning rate"),
        (axes[1, 1], "train/r", "r: probability of a random order"),
    ):
        axis.plot(*series(name), color="tab:green")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.25)
    axes[1, 1].set_ylim(-0.05, 1.05)
    shown = axes[0, 0].get_xlim()
    for axis in axes.flat:
        axis.axvspan(*anneal_steps, color="tab:purple", alpha=0.06, label="annealing window")
        axis.set_xlim(shown)  # The window may lie far beyond a short run.
    axes[0, 0].legend(fontsize=8)
    save_figure(figure, path)
