"""Compares settings of training with several seeds: trains, scores, and writes a table and a figure.

    python -m rar_jax study configs/studies/annealing.py --out=FOLDER [--process_index=0 --process_count=2]

The same command resumes a study that was stopped. Cells in docs/results/*/results.json, of any study, are not trained
again. The exit code is 75 if the study was preempted, and 1 if a cell failed.
"""

import logging
import pathlib
import sys

from absl import flags
from etils import epath

from rar_jax.commands import cli, shared_flags
from rar_jax.errors import UserError
from rar_jax.run_folder import check_folder, lock
from rar_jax.studies.plan import cells_of, load_study
from rar_jax.studies.report import FIGURE, TABLE, write_report
from rar_jax.studies.run import RESULTS, Results, read_results, run_cells
from rar_jax.training.preemption import Preemption

_STUDY = cli.declare_argument(
    flags.DEFINE_string(
        "study", None, "Study file, such as configs/studies/annealing.py; may be given without --study."
    )
)
_OUT = flags.DEFINE_string("out", None, "Folder of the results. Default: runs/studies/NAME.")
_PROCESS, _COUNT = shared_flags.define_process()


def main(argv):
    del argv
    cli.keep_compiled_programs()
    # It logs the shapes of all parameters, which would be repeated for each cell.
    logging.getLogger("rar_jax.training.base_run").setLevel(logging.WARNING)
    if not _STUDY.value:
        raise UserError("name a study: python -m rar_jax study configs/studies/NAME.py --out=FOLDER")
    file = pathlib.Path(_STUDY.value)
    study = load_study(file)
    cells = cells_of(study)
    # After the base config was checked, and before JAX starts its backend.
    cli.set_deterministic(study.base.train.deterministic)
    index, count = shared_flags.share_of_work(_PROCESS.value, _COUNT.value)
    folder = epath.Path(_OUT.value or f"runs/studies/{file.stem}")
    check_folder("out", folder)
    own = cells[index::count]
    results = Results(folder, cells, read_results("docs/results"))
    # Without a lock, a second start would leave out cell after cell that the first one trains.
    with lock(folder, f"process_{index}", "trains"), Preemption() as preemption:
        complete = run_cells(study, own, results, folder, preemption)
    found = results.write()
    if scored := sum("scores" in cell for cell in found):
        print("\n".join(write_report(study, cells, found, folder)))
        print(f"{folder}: {RESULTS}, {TABLE}, {FIGURE}; {scored} of {len(cells)} cells")
    if not complete:
        sys.exit(cli.PREEMPTED)
    # Only this process's cells: another process may still retry the cells that failed there.
    digests = {cell.digest for cell in own}
    if failed := [cell for cell in found if "error" in cell and cell["digest"] in digests]:
        cli.fail("; ".join(f"{cell['row']}, seed {cell['seed']}: {cell['error']}" for cell in failed), cli.FAILURE)
    if left := sum(not results.finished(cell) for cell in own):
        cli.fail(f"another process trains {left} cells of this one: give both the same --process_count", cli.FAILURE)
