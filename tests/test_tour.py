"""The notebook docs/tour.ipynb runs from its first cell to its last one, and is stored with small outputs.

After a change, store its outputs again: jupyter execute --inplace docs/tour.ipynb
"""

import importlib.util
import json
import os
import re

import pytest
from conftest import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"
MISSING = [name for name in ("nbclient", "ipykernel") if importlib.util.find_spec(name) is None]


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def printed(notebook):
    """Returns all text that the cells printed."""
    return "".join("".join(o["text"]) for cell in code_cells(notebook) for o in cell["outputs"] if "text" in o)


def test_the_stored_outputs_are_complete_and_small():
    notebook = json.loads(TOUR.read_text())
    assert TOUR.stat().st_size < 1_000_000
    assert [cell["execution_count"] for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]
    assert sum(map(pictures, code_cells(notebook))) >= 12
    assert not re.search(r"/(tmp|home|root|Users)/", printed(notebook))
    assert {o["output_type"] for cell in code_cells(notebook) for o in cell["outputs"]} == {"stream", "display_data"}
    assert {o["name"] for cell in code_cells(notebook) for o in cell["outputs"] if "name" in o} == {"stdout"}


@pytest.mark.long
@pytest.mark.skipif(bool(MISSING), reason="needs a notebook's kernel: pip install -e .[test]")
def test_every_cell_runs_and_draws_what_is_stored():
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(TOUR, as_version=4)
    stored = [pictures(cell) for cell in code_cells(notebook)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    NotebookClient(notebook, timeout=1800).execute(env=environment, cwd=str(ROOT / "docs"))
    assert [pictures(cell) for cell in code_cells(notebook)] == stored
    # Figure 3: without target-aware embeddings, the position that comes next changes nothing.
    change = dict(re.findall(r"(.*): largest difference of a probability (\S+)", printed(notebook)))
    assert float(change["without"]) < 1e-6 and float(change["with target-aware embeddings"]) > 0.3
    accuracy = re.search(r"(\d+)% of 100 held-out digits", printed(notebook))
    assert int(accuracy[1]) > 90
