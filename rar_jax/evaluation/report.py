"""Reports of evaluations: a table on the terminal, report.json, and report.png, a page with the table and images."""

import dataclasses
import json
import os
import textwrap
from typing import Any

import numpy as np
from etils import epath

from rar_jax.checkpoints.weights import split_step
from rar_jax.errors import UserError
from rar_jax.files import hold_to_plan, printable, write_atomically
from rar_jax.images.files import image_grid
from rar_jax.images.plots import plt, save_figure

# The label and the number format of each score.
_SCORES = {
    "fid": ("FID", ".3f"),
    "sfid": ("sFID", ".3f"),
    "rfid": ("rFID, of reconstructions", ".3f"),
    "rsfid": ("sFID of reconstructions", ".3f"),
    "frechet_pixels": ("Frechet distance of pixels, not FID", ".3f"),
    "frechet_glyphs": ("Frechet distance of glyph features", ".3f"),
    "glyph_accuracy": ("recognised as their class", ".1%"),
    "glyph_accuracy_originals": ("originals recognised as their class", ".1%"),
    "inception_score": ("Inception Score", ".2f"),
    "precision": ("precision", ".4f"),
    "recall": ("recall", ".4f"),
    "psnr": ("PSNR, dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "codebook_use": ("codes used", ".1%"),
    "codebook_perplexity": ("perplexity of the codes", ".1f"),
    "nearest_samples": ("nearest training image, samples", ".2f"),
    "nearest_heldout": ("nearest training image, held-out", ".2f"),
    "near_samples": ("samples nearer than 99% of held-out", ".1%"),
}
_FILE = "report.json"
# Length of a line of the table, in characters.
_LINE = 118
# Number of images per line of a grid.
COLUMNS = 8


def score_label(name: str) -> str:
    """Returns the label of a score, such as FID for fid."""
    return _SCORES[name][0]


def score_text(name: str, value: float) -> str:
    """Returns the value of a score as text, with the digits that matter."""
    return format(value, _SCORES[name][1])


def read_report(folder: epath.PathLike) -> dict[str, Any] | None:
    """Returns the contents of the report.json in a folder, or None if there is none."""
    file = epath.Path(folder) / _FILE
    return json.loads(file.read_text()) if file.exists() else None


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid of images on the page of a report.

    Attributes:
      title: title of the grid.
      images: uint8 [N, H, W, 3].
      columns: number of images per line.
    """

    title: str
    images: np.ndarray
    columns: int = COLUMNS


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of an evaluation.

    Attributes:
      title: title of the page.
      inputs: the settings that decide the scores. A folder holds the report of one set of inputs.
      facts: what was compared: part of the comparison, such as samples or features -> name -> value.
      scores: name -> value, with the names that report.json uses.
      warnings: reasons why the scores cannot be compared with others.
    """

    title: str
    inputs: dict[str, Any]
    facts: dict[str, dict[str, Any]]
    scores: dict[str, float]
    warnings: list[str]

    def lines(self) -> list[str]:
        """Returns the lines of the table: facts, scores and warnings."""
        lines = []
        for part, facts in self.facts.items():
            shown = [
                f"{name} {value:,}" if isinstance(value, int) else f"{name} {printable(str(value))}"
                for name, value in facts.items()
            ]
            lines += _hanging(f"{part:<12}", "; ".join(shown))
        lines.append("")
        for name, value in self.scores.items():
            lines.append(f"{score_label(name):<36} {score_text(name, value):>12}")
        if self.warnings:
            lines.append("")
        for warning in self.warnings:
            lines += _hanging("warning: ", printable(warning))
        return lines


def _hanging(head: str, text: str) -> list[str]:
    """Wraps a text behind a head; further lines are indented by the length of the head."""
    return textwrap.wrap(text, _LINE, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False)


def report_folder(scored: epath.PathLike, name: str = "") -> epath.Path:
    """Returns the default folder of a report: evaluation/NAME beside the scored files.

    Args:
      scored: path of the scored images or weights. The folder of one step counts as the folder of its run.
      name: NAME; by default the name of `scored`, without the suffix of a file.
    """
    path, _ = split_step(scored)
    if path.name in ("", ".."):
        path = epath.Path(os.path.abspath(path))
    return path.parent / "evaluation" / (name or (path.name if path.is_dir() else path.stem))


def begin_report(folder: epath.PathLike, inputs: dict[str, Any]) -> None:
    """Creates the folder of a report, before the evaluation starts.

    Raises:
      UserError: the folder cannot be created, or has a report of other inputs. A report of the same inputs is
        replaced later.
    """
    folder = epath.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    # The default folder is beside the images, and data sets are often read-only.
    except OSError as error:
        raise UserError(f"--out={folder} cannot be created ({error.strerror}): choose another folder") from None
    if (folder / _FILE).exists():
        hold_to_plan("out", folder, json.loads((folder / _FILE).read_text()).get("inputs", {}), inputs)


def write_report(folder: epath.PathLike, report: Report, grids: list[Grid]) -> None:
    """Prints the table, and writes report.json and report.png into a folder that exists."""
    folder = epath.Path(folder)
    # Printed first, so that the scores are seen even if writing fails.
    print("\n".join(report.lines()), flush=True)
    write_atomically(folder / _FILE, json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    _draw(folder / "report.png", report, grids)
    print(f"{folder / _FILE}, {folder / 'report.png'}")


def _draw(path: epath.Path, report: Report, grids: list[Grid]) -> None:
    """Draws the page: the table, and the grids below it."""
    lines = report.lines()
    drawn = [image_grid(grid.images, grid.columns) for grid in grids]
    width = 11.0
    # In inches: 0.155 for a line of text; a grid fills the width of the page and has a title.
    heights = [0.155 * (len(lines) + 1)] + [0.92 * width * image.shape[0] / image.shape[1] + 0.4 for image in drawn]
    figure, axes = plt.subplots(
        len(heights), 1, figsize=(width, sum(heights) + 0.5), height_ratios=heights, squeeze=False, layout="constrained"
    )
    figure.suptitle(printable(report.title))
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].text(0, 1, "\n".join(lines), va="top", family="monospace", fontsize=8.5, transform=axes[0, 0].transAxes)
    for axis, grid, image in zip(axes.flat[1:], grids, drawn, strict=True):
        axis.imshow(image, interpolation="nearest" if image.shape[1] < 110 * width else "antialiased")
        axis.set_title(grid.title, fontsize=9)
    save_figure(figure, path)
