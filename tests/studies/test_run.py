import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from conftest import ROOT
from running import tiny_study

from rar_jax.run_folder import lock
from rar_jax.studies import run as run_module
from rar_jax.studies.plan import Row, cells_of
from rar_jax.studies.run import RESULTS, Results, read_results, run_cells
from rar_jax.training.preemption import Preempted, Preemption


def scores_of(folder):
    cells = json.loads((folder / RESULTS).read_text())["cells"]
    return {cell["digest"]: cell["scores"] for cell in cells}


def test_a_failed_cell_does_not_end_the_study_and_finished_cells_are_kept(tmp_path, monkeypatch):
    study = tiny_study()
    rows = [study.rows[0], Row("diverges", {"optimizer.learning_rate": 1e30, "train.max_skipped": 2}), study.rows[1]]
    study = dataclasses.replace(study, rows=rows, choosing=True)
    cells = cells_of(study)
    folder = tmp_path / "results" / "earlier"
    results = Results(folder, cells, {})
    assert run_cells(study, cells, results, folder, Preemption())
    found = json.loads((folder / RESULTS).read_text())["cells"]
    assert [cell["row"] for cell in found] == ["0-0", "diverges", "0-1"]
    message = r"NonFiniteError: step \d+: 2 updates in a row were not finite and were skipped"
    assert re.match(message, found[1]["error"]) and "scores" not in found[1]
    assert found[0]["scores"].keys() == {"validation_end", "validation_best", "best_step"}
    assert found[0]["seconds"]["training"] > 0 and len(found[0]["curves"]["heldout/target_loss"]) == 2
    # The failed cell alone is tried again, unless the results are known from elsewhere.
    tried = []
    monkeypatch.setattr(run_module, "_measure", lambda study, cell, *rest: tried.append(cell.row.label))
    monkeypatch.setattr(results, "add", lambda cell, values: None)
    run_cells(study, cells, results, folder, Preemption())
    assert tried == ["diverges"]
    # The results are those of the same settings under any label.
    cells[2] = cells[2]._replace(row=dataclasses.replace(cells[2].row, label="renamed"))
    known = Results(tmp_path / "other", cells, read_results(tmp_path / "results"))
    assert [known.finished(cell) for cell in cells] == [True, False, True]
    assert [cell["row"] for cell in known.write()] == ["0-0", "renamed"]


def test_cells_of_another_process_are_left_to_it(tmp_path, monkeypatch, caplog):
    """Processes that divide the study differently can come to the same cells."""
    study = tiny_study(seeds=2)
    cells = cells_of(study)
    measured, other = [], Results(tmp_path, cells, {})

    def measure(study, cell, folder, preemption):
        measured.append(cell.name)
        # Meanwhile, the other process finishes the cell after this one.
        other.add(cells[1], {"scores": {"loss_end": 1.0}})
        return {"scores": {"loss_end": 2.0}}

    monkeypatch.setattr(run_module, "_measure", measure)
    with lock(tmp_path / "runs" / cells[2].name, "cell", "trains"):
        assert run_cells(study, cells[:3], Results(tmp_path, cells, {}), tmp_path, Preemption())
    assert measured == [cells[0].name]
    assert scores_of(tmp_path) == {cells[0].digest: {"loss_end": 2.0}, cells[1].digest: {"loss_end": 1.0}}
    assert f"cell {cells[2].name} is left out: " in caplog.text


def test_a_study_that_is_asked_to_end_says_so(tmp_path, monkeypatch):
    study = tiny_study()
    cells = cells_of(study)

    def preempted(*arguments):
        raise Preempted

    monkeypatch.setattr(run_module, "_measure", preempted)
    assert not run_cells(study, cells, Results(tmp_path, cells, {}), tmp_path, Preemption())
    assert not (tmp_path / RESULTS).exists()


PROGRAM = """
import dataclasses, sys
sys.path.insert(0, "tests")
from running import tiny_study
def get_study():
    study = tiny_study(seeds=2)
    study.base.train.epochs = 6
    return study
"""


@pytest.mark.long
def test_a_killed_study_gives_equal_results(tmp_path):
    """Four cells, killed with -9 at random times and started again."""
    file = tmp_path / "four.py"
    file.write_text(textwrap.dedent(PROGRAM))

    def start(name):
        command = [sys.executable, "-m", "rar_jax", "study", str(file), f"--out={tmp_path / name}"]
        with (tmp_path / f"{name}.log").open("a") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ)

    began = time.monotonic()
    assert start("whole").wait() == 0
    seconds = time.monotonic() - began
    rng, kills = random.Random(0), 0
    while True:
        process = start("killed")
        try:
            # Long enough that each start makes some progress.
            assert process.wait(seconds * rng.uniform(0.3, 0.7)) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    whole, killed = (scores_of(tmp_path / name) for name in ("whole", "killed"))
    assert kills >= 1 and len(whole) == 4
    assert whole == killed
