"""What an evaluation found: a table on the terminal, report.json, and report.png, a page to look at."""

import dataclasses
import json
import os
import textwrap
from typing import Any

import numpy as np
from etils import epath

from rar_jax.checkpoints.weights import split_step
from rar_jax.errors import UserError
from rar_jax.files import hold_to_plan, write_atomically
from rar_jax.images.files import image_grid
from rar_jax.images.plots import plt, save_figure

# How each score is called, and how it is written.
_SCORES = {
    "fid": ("FID", ".3f"),
    "sfid": ("sFID", ".3f"),
    "rfid": ("rFID, of reconstructions", ".3f"),
    "rsfid": ("sFID of reconstructions", ".3f"),
    "frechet_pixels": ("Frechet distance of pixels, not FID", ".3f"),
    "inception_score": ("Inception Score", ".2f"),
    "precision": ("precision", ".4f"),
    "recall": ("recall", ".4f"),
    "psnr": ("PSNR, dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "codebook_use": ("codes used", ".1%"),
    "codebook_perplexity": ("perplexity of the codes", ".1f"),
}
_FILE = "report.json"
_LINE = 118
# Of a grid of images.
COLUMNS = 8


def score_label(name: str) -> str:
    """What people call a score."""
    return _SCORES[name][0]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the page: a title, and uint8 [N, H, W, 3] in so many columns."""

    title: str
    images: np.ndarray
    columns: int = COLUMNS


@dataclasses.dataclass(frozen=True)
class Report:
    """What was compared with what, and what came of it.

    Attributes:
      title: of the page.
      inputs: what was asked for, by the flags; a folder has a report of one.
      facts: what the scores stand on, by the part they are of: samples, reference, features.
      scores: by the names of report.json.
      warnings: what keeps the scores from being compared with others.
    """

    title: str
    inputs: dict[str, Any]
    facts: dict[str, dict[str, Any]]
    scores: dict[str, float]
    warnings: list[str]

    def lines(self) -> list[str]:
        """The table: facts, scores and warnings."""
        lines = []
        for part, facts in self.facts.items():
            shown = [
                f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in facts.items()
            ]
            lines += _hanging(f"{part:<12}", "; ".join(shown))
        lines.append("")
        for name, value in self.scores.items():
            label, style = _SCORES[name]
            lines.append(f"{label:<36} {value:>12{style}}")
        if self.warnings:
            lines.append("")
        for warning in self.warnings:
            lines += _hanging("warning: ", warning)
        return lines


def _hanging(head: str, text: str) -> list[str]:
    return textwrap.wrap(text, _LINE, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False)


def report_folder(scored: epath.PathLike, name: str = "") -> epath.Path:
    """Returns the default folder of a report: evaluation/NAME beside what is scored.

    Args:
      scored: path of the images or weights. For the folder of one step it is the run's folder that counts.
      name: NAME; by default the name of what is scored, without the suffix of a file.
    """
    path, _ = split_step(scored)
    if path.name in ("", ".."):
        path = epath.Path(os.path.abspath(path))
    return path.parent / "evaluation" / (name or (path.name if path.is_dir() else path.stem))


def begin_report(folder: epath.PathLike, inputs: dict[str, Any]) -> None:
    """Makes the folder of a report, before the work that it is of.

    Raises:
      UserError: it cannot be made, or has a report of other inputs; one of the same will be replaced.
    """
    folder = epath.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    # Read-only, as data sets often are.
    except OSError as error:
        raise UserError(f"--out={folder} cannot be made ({error.strerror}): choose another folder") from None
    if (folder / _FILE).exists():
        hold_to_plan("out", folder, json.loads((folder / _FILE).read_text()).get("inputs", {}), inputs)


def write_report(folder: epath.PathLike, report: Report, pictures: list[Picture]) -> None:
    """Prints the table, and writes report.json and report.png into a folder that is there."""
    folder = epath.Path(folder)
    # First: whatever becomes of the files, the scores are said.
    print("\n".join(report.lines()), flush=True)
    write_atomically(folder / _FILE, json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    _draw(folder / "report.png", report, pictures)
    print(f"{folder / _FILE}, {folder / 'report.png'}")


def _draw(path: epath.Path, report: Report, pictures: list[Picture]) -> None:
    lines = report.lines()
    grids = [image_grid(picture.images, picture.columns) for picture in pictures]
    width = 11.0
    # Inches: of a line of text, and of each grid at the page's width.
    heights = [0.155 * (len(lines) + 1)] + [0.92 * width * grid.shape[0] / grid.shape[1] + 0.4 for grid in grids]
    figure, axes = plt.subplots(
        len(heights), 1, figsize=(width, sum(heights) + 0.5), height_ratios=heights, squeeze=False, layout="constrained"
    )
    figure.suptitle(report.title)
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].text(0, 1, "\n".join(lines), va="top", family="monospace", fontsize=8.5, transform=axes[0, 0].transAxes)
    for axis, picture, grid in zip(axes.flat[1:], pictures, grids, strict=True):
        axis.imshow(grid, interpolation="nearest" if grid.shape[1] < 110 * width else "antialiased")
        axis.set_title(picture.title, fontsize=9)
    save_figure(figure, path)
