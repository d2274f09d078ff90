"""launch/own_images.sh, with a plan for tiny networks."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

TOKENIZER = """
from rar_jax.tokenizer_config import tokenizer

def get_config():
    config = tokenizer()
    config.model.update(width=8, multipliers=(1, 2), num_blocks=1, latent_width=2, codebook_size=16)
    config.quantizer.levels = (4, 4)
    config.optimizer.update(learning_rate=3e-3, warmup_steps=1)
    config.train.update(batch_size=8, steps=12, log_every=4)
    config.data.update(images="{run}/images/train", eval_images="{run}/images/heldout", image_size=16)
    config.eval.update(every=6, grid_images=4)
    config.checkpoint.every = 4
    return config
"""
RAR = """
from rar_jax.config import imagenet

def get_config():
    config = imagenet()
    config.model.update(grid_side=8, codebook_size=16, num_classes=2, width=16, depth=1, num_heads=2, mlp_width=32)
    config.data.update(path="{run}/tokens/train", eval_path="{run}/tokens/heldout", tokenizer="{run}/tokenizer")
    config.data.update(num_images=86, image_size=16, downsampling=2)
    config.train.update(batch_size=8, epochs=2, dtype="float32", log_every=4)
    config.permutation.update(anneal_start_epoch=1, anneal_end_epoch=2)
    config.optimizer.update(warmup_epochs=1)
    config.eval.update(every=10, num_images=10)
    config.checkpoint.every = 5
    return config
"""
# Files that hold times or process ids. job.json has the digest of a checkpoint's files, whose names Orbax draws; its
# weights are compared by the samples.
_NOT_COMPARED = re.compile(r"speed\.jsonl|events\.out.*|.*\.lock|.*\.pid|job\.json")

STAGES = ["check", "split", "tokenizer", "tokenize_train", "tokenize_heldout", "train", "sample", "nearest", "page"]


@pytest.fixture
def project(tmp_path):
    """A copy of what the script needs, with the Python of the tests."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    for name in ("rar_jax", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return tmp_path


def begin(project, images, **settings):
    """Starts the script in a process group of its own, with its output in the file "log"."""
    optimisation = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    with (project / "log").open("a") as log:
        return subprocess.Popen(
            [project / "launch" / "own_images.sh", images, project / "run"],
            env=os.environ | optimisation | settings, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def plan(project):
    """Plans tiny networks, so that the script skips its own plan."""
    run = project / "run"
    (run / "stages").mkdir(parents=True)
    (run / "stages" / "plan").touch()
    (run / "tokenizer.py").write_text(TOKENIZER.format(run=run))
    (run / "rar.py").write_text(RAR.format(run=run))


def contents(run):
    """Returns name -> bytes of the files that must be the same."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and "checkpoints" not in path.parts and not _NOT_COMPARED.fullmatch(path.name)
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "launch/own_images.sh DIR [run folder]"),
        (["nowhere"], 2, "error: no images in '"),
        (["nowhere", "run", "HOURS=1"], 2, "launch/own_images.sh DIR [run folder]"),
        (["nowhere", "HOURS=1"], 2, "launch/own_images.sh DIR [run folder]"),
    ],
)
def test_mistakes(project, arguments, code, message):
    done = subprocess.run(
        [project / "launch" / "own_images.sh", *arguments], capture_output=True, text=True, timeout=120, cwd=project
    )
    assert done.returncode == code and message in done.stderr, done.stderr


def test_wrong_settings_are_found_before_the_check(project, tmp_path):
    for settings, message in (
        ({"HOURS": "2h"}, "error: HOURS=2h must be a number above 0"),
        ({"HOURS": "0.0"}, "error: HOURS=0.0 must be a number above 0"),
        ({"INCEPTION": "none.pth"}, "none.pth: there is no such file"),
    ):
        assert begin(project, tmp_path, **settings).wait(60) == 2
        log = (project / "log").read_text()
        assert message in log and "== check ==" not in log


def test_the_settings_of_own_images_do_not_matter_for_glyphs(project):
    """The run goes on where it was, here at its last stage, which finds no run."""
    stages = project / "run" / "stages"
    stages.mkdir(parents=True)
    (stages / "settings").write_text("images=glyphs IMAGE_SIZE=64 HOURS=2 TOKENIZER= INCEPTION=\n")
    for name in ("images", "held_out_images", *STAGES[2:6], "sample", "evaluate", "nearest"):
        (stages / name).touch()
    (project / "run" / "images" / "train").mkdir(parents=True)
    assert begin(project, "glyphs", HOURS="3", IMAGE_SIZE="96").wait(60) == 2
    log = (project / "log").read_text()
    assert "== page ==" in log and "was started with" not in log


def test_other_settings_than_those_of_the_completed_stages_are_refused(project):
    stages = project / "run" / "stages"
    stages.mkdir(parents=True)
    (stages / "settings").write_text("images=/other IMAGE_SIZE=64 HOURS=2 TOKENIZER= INCEPTION=\n")
    assert begin(project, "glyphs", IMAGE_SIZE="32").wait(60) == 2
    refusal = "started with images=/other IMAGE_SIZE=64 HOURS=2 TOKENIZER= INCEPTION=, not images=glyphs: use"
    assert refusal in (project / "log").read_text()


def test_settings_may_change_until_the_training_is_planned(project, tmp_path):
    """The check is repeated, which finds too few images here."""
    stages = project / "run" / "stages"
    stages.mkdir(parents=True)
    (tmp_path / "few").mkdir()
    earlier = f"images={tmp_path.resolve() / 'few'} IMAGE_SIZE=100 HOURS=2 TOKENIZER= INCEPTION=\n"
    (stages / "settings").write_text(earlier)
    (stages / "check").touch()
    assert begin(project, tmp_path / "few", IMAGE_SIZE="96").wait(120) == 2
    log = (project / "log").read_text()
    assert "== check ==" in log and "error: no .jpg" in log and "was started with" not in log
    # Other hours need no other check; the split finds that there are no images.
    (stages / "check").touch()
    assert begin(project, tmp_path / "few", IMAGE_SIZE="100", HOURS="3").wait(120) == 2
    assert (stages / "check").exists() and "== split ==" in (project / "log").read_text()
    (stages / "plan").touch()
    assert begin(project, tmp_path / "few", IMAGE_SIZE="96").wait(60) == 2
    assert "IMAGE_SIZE=100 HOURS=2 TOKENIZER= INCEPTION=, not images=" in (project / "log").read_text()


def kill_in(project, scenes, stage, seconds):
    """Starts the script, waits until a stage begins, and kills everything after some seconds."""
    process = begin(project, scenes, IMAGE_SIZE="16")
    deadline = time.monotonic() + 600
    while f"== {stage} ==" not in (project / "log").read_text():
        if process.poll() == 0:  # An earlier kill came so late that all was done.
            return
        assert process.poll() is None and time.monotonic() < deadline, (project / "log").read_text()[-2000:]
        time.sleep(0.05)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.long
def test_killed_in_each_stage_it_gives_the_same_files(project, scenes):
    plan(project)
    began, undisturbed = time.monotonic(), begin(project, scenes, IMAGE_SIZE="16")
    assert undisturbed.wait(1800) == 0, (project / "log").read_text()[-2000:]
    stages = re.findall("^== (.*) ==$", (project / "log").read_text(), re.MULTILINE)
    assert stages == STAGES
    each = (time.monotonic() - began) / len(stages)
    expected = contents(project / "run")
    assert {"index.html", "samples/samples.npz", "evaluation/nearest/report.json", "rar/metrics.jsonl"} <= set(expected)
    shutil.rmtree(project / "run")
    plan(project)
    moments = random.Random(0)
    for stage in stages:
        (project / "log").write_text("")
        kill_in(project, scenes, stage, moments.uniform(0, 1.2 * each))
    assert begin(project, scenes, IMAGE_SIZE="16").wait(1800) == 0
    found = contents(project / "run")
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    # A finished run is not touched again.
    (project / "log").write_text("")
    assert begin(project, scenes, IMAGE_SIZE="16").wait(60) == 0
    assert (project / "log").read_text() == f"Open {project}/run/index.html\n"
