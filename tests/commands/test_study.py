import json

import pytest
from running import call, refusal

from rar_jax.studies.plan import cells_of, load_study
from rar_jax.studies.run import RESULTS

FILE = """
from running import tiny_study
def get_study():
    return tiny_study(choosing=True, compare="validation_end", columns=("validation_end", "best_step"))
"""


def test_a_study_is_divided_and_reported(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(FILE)
    # A cell that failed earlier is no failure of the other process, and its own process tries it again.
    digest = cells_of(load_study(file))[1].digest
    (tmp_path / "out" / "cells").mkdir(parents=True)
    (tmp_path / "out" / "cells" / f"{digest}.json").write_text('{"error": "earlier"}')
    # The study file is given without a flag's name.
    parts = [
        call("study", file, f"--out={tmp_path / 'out'}", f"--process_index={index}", "--process_count=2")
        for index in range(2)
    ]
    assert [part.returncode for part in parts] == [0, 0], parts[1].stderr
    folders = sorted(folder.name for folder in (tmp_path / "out" / "runs").iterdir())
    assert "1 of 2 cells" in parts[0].stdout and "2 of 2 cells" in parts[1].stdout
    found = json.loads((tmp_path / "out" / RESULTS).read_text())["cells"]
    assert [(cell["row"], cell["seed"]) for cell in found] == [("0-0", 0), ("0-1", 0)]
    assert folders == [f"{cell['row']}-seed0-{cell['digest']}" for cell in found]
    lines = (tmp_path / "out" / "table.txt").read_text().splitlines()
    assert lines[0] == "tiny" and lines[2].split()[:2] == ["row", "seeds"]
    assert f"{found[0]['scores']['validation_end']:.4g}" in lines[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a study: python -m rar_jax study configs/studies/NAME.py"),
        (["nothing.py"], "nothing.py: there is no such file"),
        (["a.py", "b.py"], "unexpected argument 'b.py'"),
        (["configs/studies/annealing.py", "--process_index=0"], "must be given together"),
        (["configs/studies/annealing.py", "--out=README.md"], "--out=README.md: README.md is a file"),
    ],
)
def test_mistakes_with_study(arguments, message):
    assert message in refusal("study", *arguments)
