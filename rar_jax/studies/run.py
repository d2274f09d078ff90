"""Trains and scores the cells of a study, and keeps their results. A study that was stopped is resumed."""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from rar_jax.errors import UserError
from rar_jax.files import read_json_lines, write_atomically
from rar_jax.progress import Progress
from rar_jax.run_folder import lock
from rar_jax.studies.plan import Cell, Study
from rar_jax.studies.program import cell_program
from rar_jax.studies.scores import CellScorer, read_curves
from rar_jax.training import loop
from rar_jax.training.metrics import SPEED_FILE
from rar_jax.training.preemption import Preempted, Preemption
from rar_jax.training.run import prepare

_log = logging.getLogger(__name__)

RESULTS = "results.json"
_CELLS, _RUNS = "cells", "runs"

# The results of a cell: row, fields, seed, digest, and either scores, seconds and curves, or error.
Result = dict[str, Any]


def read_results(folder: epath.PathLike) -> dict[str, Result]:
    """Returns the finished cells of the studies in a folder by their digests: those of all its NAME/results.json."""
    files = sorted(epath.Path(folder).glob(f"*/{RESULTS}"))
    cells = [cell for file in files for cell in json.loads(file.read_text())["cells"]]
    return {cell["digest"]: cell for cell in cells if "scores" in cell}


class Results:
    """The results of a study in a folder: a file for each cell, and results.json with all of them."""

    def __init__(self, folder: epath.PathLike, cells: Sequence[Cell], earlier: Mapping[str, Result]):
        """Reads the cells that are in the folder.

        Args:
          folder: the study's folder, which is created if necessary.
          cells: the cells of the study.
          earlier: results by digest that need not be measured again.
        """
        self._folder, self._cells, self._earlier = epath.Path(folder), cells, earlier
        (self._folder / _CELLS).mkdir(parents=True, exist_ok=True)

    def read(self, cell: Cell) -> Result | None:
        """Returns the results of a cell, which may be an error, or None if it was not tried."""
        found, file = self._earlier.get(cell.digest), self._folder / _CELLS / f"{cell.digest}.json"
        if found is None and file.exists():
            found = json.loads(file.read_text())
        # The same settings can be those of a row with another label, of this study or an earlier version of it.
        return None if found is None else found | self._description(cell)

    def finished(self, cell: Cell) -> bool:
        """Returns whether a cell is trained and scored."""
        return "scores" in (self.read(cell) or {})

    def add(self, cell: Cell, values: Mapping[str, Any]) -> None:
        """Writes what was found for a cell, and results.json anew with the cells of all processes."""
        text = json.dumps(self._description(cell) | dict(values)) + "\n"
        write_atomically(self._folder / _CELLS / f"{cell.digest}.json", text)
        self.write()

    @staticmethod
    def _description(cell: Cell) -> Result:
        return {"row": cell.row.label, "fields": dict(cell.row.fields), "seed": cell.seed, "digest": cell.digest}

    def write(self) -> list[Result]:
        """Writes results.json with a line for each cell, in the order of the study. Returns the cells."""
        found = [result for cell in self._cells if (result := self.read(cell)) is not None]
        lines = ",\n".join(json.dumps(result) for result in found)
        write_atomically(self._folder / RESULTS, f'{{"cells": [\n{lines}\n]}}\n')
        return found


def run_cells(
    study: Study, cells: Sequence[Cell], results: Results, folder: epath.PathLike, preemption: Preemption
) -> bool:
    """Trains and scores every cell that has no results yet. A cell that fails does not end the others.

    Cells that another process trains at the moment, or has finished meanwhile, are left to it. This happens if two
    processes divide the study differently.

    Args:
      study: the study.
      cells: this process's cells.
      results: where the results go.
      folder: the study's folder; each cell is a run in a folder below it, which can be resumed.
      preemption: tells when to end early.

    Returns:
      False if the study was preempted.
    """
    left = [cell for cell in cells if not results.finished(cell)]
    progress = Progress("study", len(cells), done=len(cells) - len(left), unit="cell")
    for cell in left:
        run = epath.Path(folder) / _RUNS / cell.name
        try:
            with lock(run, "cell", "trains"):
                if not results.finished(cell):
                    results.add(cell, _measure_or_fail(study, cell, run, preemption))
        except Preempted:
            progress.close()
            return False
        except UserError as error:
            _log.warning("cell %s is left out: %s", cell.name, error)
        progress.update(note=cell.name)
    progress.close()
    return True


def _measure_or_fail(study: Study, cell: Cell, folder: epath.Path, preemption: Preemption) -> dict[str, Any]:
    """Returns what `_measure` does, or the error that ended the cell, which must not end the study."""
    try:
        return _measure(study, cell, folder, preemption)
    except Preempted:
        raise
    except Exception as error:
        _log.error("cell %s failed: %s", cell.name, error, exc_info=not isinstance(error, UserError))
        return {"error": f"{type(error).__name__}: {error}"}


def _measure(study: Study, cell: Cell, folder: epath.Path, preemption: Preemption) -> dict[str, Any]:
    """Trains a cell, or resumes its training, and returns its scores and curves.

    Raises:
      Preempted: the process was asked to end; the training is saved.
    """
    run = prepare(cell.config, folder)
    run = dataclasses.replace(run, program=cell_program(run.program))
    if not loop.train(run, preemption):
        raise Preempted
    began = time.monotonic()
    scores = CellScorer(study, cell, run.datasets, preemption.check).score(folder)
    seconds = {"training": _training_seconds(folder, cell.config.train.log_every), "scoring": time.monotonic() - began}
    return {"scores": scores, "seconds": seconds, "curves": read_curves(folder)}


def _training_seconds(folder: epath.Path, log_every: int) -> float:
    """Returns about the time of all training steps, those that were repeated after a kill included.

    Steps after the last line of the log, before a kill or the end, are not counted.
    """
    return sum(log_every / line["steps_per_s"] for line in read_json_lines(folder / SPEED_FILE))
