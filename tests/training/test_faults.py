"""Interrupted and damaged runs lose nothing that was saved, and report what happened."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from rar_jax.errors import UserError
from rar_jax.training import loop
from rar_jax.training.evaluators.heldout import HeldOutLosses
from rar_jax.training.loop import NonFiniteError
from rar_jax.training.metrics import read_metrics
from rar_jax.training.preemption import Preempted, Preemption
from rar_jax.training.run import prepare


def config_of(small_config, **sections):
    defaults = {
        "train": {"stop_step": 20, "log_every": 3},
        "checkpoint": {"every": 5},
        "eval": {"every": 10, "num_images": 32, "samples_per_class": 1, "score_every": 10, "score_images": 10},
    }
    return small_config(**{name: defaults.get(name, {}) | sections.get(name, {}) for name in {*defaults, *sections}})


def final_state(config, folder):
    run = prepare(config, folder)
    state, _ = run.begin()
    run.close()
    return jax.device_get(state)


@pytest.fixture(scope="module")
def undisturbed(small_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert loop.train(prepare(config_of(small_config), folder))
    return folder, final_state(config_of(small_config), folder)


def assert_undisturbed(folder, small_config, undisturbed):
    """Asserts that a run's final state and metrics equal those of the undisturbed run bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, final_state(config_of(small_config), folder), undisturbed[1])
    assert read_metrics(folder) == read_metrics(undisturbed[0])


class AskedAt(Preemption):
    """Asks the run to end after a number of steps or, with `checks`, at the check after that number of checks."""

    def __init__(self, step, checks=None):
        super().__init__()
        self._steps_left, self._checks = step, checks

    def asked(self):
        self._steps_left -= 1
        return self._checks is None and self._steps_left == 0

    def check(self):
        if self._checks is not None:
            self._checks -= 1
            if self._checks < 0:
                raise Preempted


@pytest.mark.parametrize(
    ("asked", "saved"),
    [
        (AskedAt(7), 7),
        (AskedAt(10), 10),
        (AskedAt(0, 2), 10),
        (AskedAt(0, 5), 10),
        (AskedAt(0, 8), 10),
        (AskedAt(0, 0), 0),
    ],
)
def test_a_preempted_run_saves_and_resumes_without_a_difference(
    small_config, undisturbed, tmp_path, caplog, asked, saved
):
    """The run ends after a step with or without an evaluation, while it evaluates, samples or scores, or compiles."""
    config = config_of(small_config)
    caplog.set_level("INFO", "rar_jax")
    assert not loop.train(prepare(config, tmp_path), asked)
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert max(steps, default=0) == saved
    assert caplog.messages[-1].startswith("Saved, to be" if saved else "Ended before the first save, to be")
    assert loop.train(prepare(config, tmp_path))
    assert_undisturbed(tmp_path, small_config, undisturbed)


def flip_a_bit(folder):
    files = sorted((path for path in folder.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(files[-1].read_bytes())
    data[len(data) // 2] ^= 4
    files[-1].write_bytes(data)


def test_a_flipped_bit_is_detected_and_the_checkpoint_before_is_used(small_config, undisturbed, tmp_path, caplog):
    config = config_of(small_config)
    assert not loop.train(prepare(config, tmp_path), AskedAt(12))
    flip_a_bit(tmp_path / "checkpoints" / "12" / "state")
    # A process that is killed during a save leaves such a folder.
    shutil.copytree(tmp_path / "checkpoints" / "10", tmp_path / "checkpoints" / "15.orbax-checkpoint-tmp")
    assert loop.train(prepare(config, tmp_path))
    messages = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "12 cannot be read" in messages[0] and "is damaged" in messages[0]
    assert messages[1].startswith("went back to the checkpoint of step 10")
    assert (tmp_path / "damaged_checkpoints" / "12").exists()
    assert "/12 cannot be read" in (tmp_path / "damaged_checkpoints" / "12.txt").read_text()
    assert_undisturbed(tmp_path, small_config, undisturbed)


def test_a_failed_save_is_logged_and_training_continues(small_config, undisturbed, tmp_path, caplog, monkeypatch):
    config = config_of(small_config)
    run = prepare(config, tmp_path)
    save = run.store._manager.save

    def full(step, **options):
        if step in (10, 15):
            raise OSError(28, "No space left on device")
        return save(step, **options)

    monkeypatch.setattr(run.store._manager, "save", full)
    assert loop.train(run)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert (
        len(errors) == 2
        and errors[0].startswith("the save of step 10 failed")
        and "No space left" in errors[0]
        and "[5]" in errors[0]
    )
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"5", "20"}
    assert_undisturbed(tmp_path, small_config, undisturbed)


def test_a_disk_that_is_full_at_the_end_is_an_error(small_config, tmp_path, monkeypatch):
    run = prepare(config_of(small_config, train={"stop_step": 4}), tmp_path)

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.store._manager, "wait_until_finished", full)
    with pytest.raises(OSError, match="step 4 could not be saved; there is no checkpoint yet"):
        loop.train(run)


def test_a_second_process_is_refused(small_config, tmp_path):
    run = prepare(config_of(small_config), tmp_path)
    with pytest.raises(UserError, match=r"process .+:\d+ trains there; stop it, or choose another folder"):
        prepare(config_of(small_config), tmp_path)
    run.close()
    prepare(config_of(small_config), tmp_path).close()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(
    ("learning_rate", "message"),
    [
        (
            1e38,
            r"^step 5: 4 updates in a row were not finite and were skipped .*; the last good checkpoint is of step \d$",
        ),
        (1e39, r"^step 1: the state is not finite and is not saved; there is no checkpoint yet$"),
    ],
    ids=["huge", "infinite"],
)
def test_values_that_are_not_finite_end_the_run_and_are_not_saved(small_config, tmp_path, learning_rate, message):
    """The first update makes the parameters so large that no later one is finite, or larger than float32 can hold."""
    config = config_of(
        small_config,
        optimizer={"learning_rate": learning_rate, "warmup_epochs": 0},
        train={"max_skipped": 4},
        checkpoint={"every": 1},
    )
    with pytest.raises(NonFiniteError, match=message):
        loop.train(prepare(config, tmp_path))
    run = prepare(config, tmp_path)
    for leaf in jax.tree.leaves(run.begin()[0]):
        assert np.isfinite(leaf).all()
    run.close()


def test_skipped_updates_are_counted_in_a_row():
    """A run goes on if every second update is made."""
    run = mock.Mock()
    run.config.train.max_skipped = 2
    skipped = loop._SkippedUpdates(run)
    for step in range(1, 9):
        skipped.check(step, {"skipped": jnp.float32(step % 2)})


def test_a_failed_evaluation_loses_nothing(small_config, tmp_path, monkeypatch):
    """The checkpoint is saved first, also if its score decides whether it is kept."""
    config = config_of(small_config, checkpoint={"every": 4, "best_metric": "heldout/target_loss"}, eval={"every": 4})
    monkeypatch.setattr(HeldOutLosses, "run", mock.Mock(side_effect=MemoryError("no memory")))
    with pytest.raises(MemoryError):
        loop.train(prepare(config, tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


@pytest.mark.parametrize("asked", [None, AskedAt(0, 1)])
def test_keep_policy(small_config, tmp_path, monkeypatch, asked):
    """Also if the run is preempted while the best checkpoint is evaluated, which is then saved first."""

    def evaluate(self, step, *arguments):
        # The loss rises, so that the best checkpoint is not among the newest.
        result = run(self, step, *arguments)
        return dataclasses.replace(result, values=result.values | {"heldout/target_loss": float(step)})

    run = HeldOutLosses.run
    monkeypatch.setattr(HeldOutLosses, "run", evaluate)
    config = config_of(
        small_config,
        checkpoint={"every": 2, "keep": 2, "keep_every": 8, "best_metric": "heldout/target_loss"},
        eval={"every": 4, "samples_per_class": 0},
    )

    def steps():
        return {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}

    if asked:
        assert not loop.train(prepare(config, tmp_path), asked)
        assert steps() == {2, 4} and "heldout/target_loss" not in read_metrics(tmp_path)[-1]
    assert loop.train(prepare(config, tmp_path))
    assert steps() == {4, 8, 16, 18, 20}


def start(folder, devices, steps):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    command = [sys.executable, "-m", "rar_jax.main", "--config=configs/digits.py", f"--workdir={folder}"]
    command += ["--config.model.width=16", "--config.model.depth=1", "--config.eval.num_images=32"]
    command += ["--config.eval.every=40", "--config.eval.samples_per_class=0", "--config.eval.report_samples=0"]
    # Once the orders are few, the small model learns fast, and rounding errors of other numbers of devices grow fast.
    command += ["--config.eval.score_every=0", "--config.permutation.anneal_start_epoch=4"]
    command += ["--config.checkpoint.every=10", "--config.train.log_every=5", f"--config.train.stop_step={steps}"]
    environment = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}
    environment["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def losses(folder):
    return {entry["step"]: entry["train/loss"] for entry in read_metrics(folder) if "train/loss" in entry}


@pytest.mark.parametrize(
    ("kills", "steps"), [pytest.param(3, 400, id="3"), pytest.param(20, 600, id="20", marks=pytest.mark.long)]
)
def test_torture(tmp_path, kills, steps):
    """A run that is killed at random moments, each time on another number of devices, has the undisturbed losses."""
    whole = start(tmp_path / "whole", 1, steps)
    assert whole.wait(timeout=600) == 0, whole.stderr.read()
    chance = random.Random(kills)
    metrics = tmp_path / "run" / "metrics.jsonl"
    for kill in range(kills):
        # A process replaces the log when it starts to train. An earlier signal, while Python starts, only ends it.
        before = metrics.stat().st_ino if metrics.exists() else None
        process = start(tmp_path / "run", chance.choice([1, 2, 4, 8]), steps)
        target = (kill + chance.random()) * (steps - 60) / kills
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            begun = metrics.exists() and metrics.stat().st_ino != before
            if begun and max(losses(tmp_path / "run"), default=0) >= target:
                break
            time.sleep(0.02)
        time.sleep(chance.random() * 0.2)
        assert process.poll() is None, process.stderr.read()
        sent = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL)[kill % 4]
        process.send_signal(sent)
        code = process.wait(timeout=300)
        assert code == (-signal.SIGKILL if sent == signal.SIGKILL else 75), process.stderr.read()
    last = start(tmp_path / "run", 1, steps)
    assert last.wait(timeout=600) == 0, last.stderr.read()
    expected, found = losses(tmp_path / "whole"), losses(tmp_path / "run")
    assert found.keys() == expected.keys()
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-3
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["stop_step"] == steps
