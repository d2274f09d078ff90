import shutil

from running import call, refusal

from rar_jax.run_folder import write_config


def test_runs_are_compared(small_config, tmp_path):
    folder = tmp_path / "run"
    write_config(folder, small_config())
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.5}\n{"step": 2, "train/loss": 2.0}\n')
    shutil.copytree(folder, tmp_path / "other")
    drawn = call("curves", f"--runs={folder},{tmp_path / 'other'}")
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.splitlines()[0] == f"{folder}: the same config"
    assert (tmp_path / "evaluation" / "curves" / "curves.png").exists()


def test_mistakes_with_curves():
    assert "no run in 'tests'" in refusal("curves", "--runs=tests")
    assert "name the folders of runs with --runs=A,B" in refusal("curves")
