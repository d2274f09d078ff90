"""The commands as their users run them: what a mistake prints, and exit codes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from rar_jax.training.metrics import read_metrics


def run(*arguments):
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/digits.py", "--config.train.bacth_size=3"],
            "no field 'train.bacth_size'; nearest: train.batch_size",
        ),
        (["--config=configs/digits.py", "--config.train.batch_size=many"], "batch_size"),
        (["--config=configs/digits.py", "--config.model.width=65"], "must be divisible by config.model.num_heads"),
        (["--config=configs/rar_b.py"], "config.data.path is empty"),
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        ([], "name an experiment with --config"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    result = run("rar_jax.main", f"--workdir={tmp_path / 'run'}", *arguments)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "run").exists()


def test_train_then_sample(tmp_path):
    overrides = ["--config.model.width=16", "--config.model.depth=1", "--config.train.stop_step=2"]
    overrides += ["--config.eval.samples_per_class=0", "--config.eval.report_samples=0", "--config.eval.num_images=16"]
    trained = run("rar_jax.main", "--config=configs/digits.py", f"--workdir={tmp_path}", *overrides)
    assert trained.returncode == 0, trained.stderr
    sampled = run("rar_jax.sample", f"--checkpoint={tmp_path}", "--classes=7,2", "--num=5", "--npz", "--seed=3")
    assert sampled.returncode == 0, sampled.stderr
    assert (tmp_path / "samples" / "grid.png").exists()
    with np.load(tmp_path / "samples" / "samples.npz") as file:
        assert file["arr_0"].shape == (5, 8, 8, 3) and file["arr_0"].dtype == np.uint8
    wrong = run("rar_jax.sample", f"--checkpoint={tmp_path}", "--classes=10")
    assert wrong.returncode == 2
    assert wrong.stderr.strip() == "error: class 10 is not in 0..9, the classes of this model"


@pytest.mark.long
def test_the_digits_run_learns_the_digits(tmp_path):
    """The whole of configs/digits.py: its report against the figures in the README, with room for other processors."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "rar_jax.main", "--config=configs/digits.py", f"--workdir={tmp_path}"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=900)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["target_loss"] < 1.30 < report["random_loss"]
    assert report["svm_accuracy_samples"] > 0.98
    assert report["frechet_samples"] < 4 * report["frechet_train"]
    evaluated = [entry for entry in read_metrics(tmp_path) if "heldout/target_loss" in entry]
    # While r is 1 both orders are as hard; once it is 0 the target order is the easier one.
    assert abs(evaluated[0]["heldout/target_loss"] - evaluated[0]["heldout/random_loss"]) < 0.03
    assert evaluated[-1]["heldout/random_loss"] - evaluated[-1]["heldout/target_loss"] > 0.3
