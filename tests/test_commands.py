"""The commands as their users run them: what a mistake prints, and exit codes."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT


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
