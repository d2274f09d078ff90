"""Draws the losses and scores of several runs on one page.

python -m rar_jax curves --runs=runs/digits,runs/other
"""

from absl import flags
from etils import epath

from rar_jax.errors import UserError
from rar_jax.evaluation.report import report_folder
from rar_jax.run_folder import check_folder, run_names
from rar_jax.training.curves import plot_runs
from rar_jax.training.metrics import read_metrics

_RUNS = flags.DEFINE_list("runs", [], "Folders of the runs. They are labelled by the fields that differ.")
_OUT = flags.DEFINE_string("out", None, "Folder of curves.png. Default: evaluation/curves beside the first run.")


def main(argv):
    del argv
    if not _RUNS.value:
        raise UserError("name the folders of runs with --runs=A,B")
    out = epath.Path(_OUT.value or report_folder(_RUNS.value[0], "curves"))
    check_folder("out", out)
    names = run_names(_RUNS.value)
    plot_runs(out / "curves.png", dict(zip(names, map(read_metrics, _RUNS.value), strict=True)))
    print("\n".join(names))
    print(out / "curves.png")
