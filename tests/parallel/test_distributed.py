"""Distributed runs with several processes on this machine, which stand for several hosts."""

import glob
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT

from rar_jax.checkpoints.weights import Weights, save_weights
from rar_jax.config import from_config_dict
from rar_jax.errors import UserError
from rar_jax.parallel import distributed
from rar_jax.run_folder import read_config
from rar_jax.schema import to_config_dict
from rar_jax.training import loop
from rar_jax.training.metrics import read_metrics
from rar_jax.training.run import prepare

STEPS = 60
# A dead process is detected within half a minute. The rest is a margin for a busy machine.
SOON = 60


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Processes:
    """Several processes of one run, and their logs."""

    def __init__(self, folder, count, *overrides, each=()):
        """Starts the processes, with overrides for all of them and for each one."""
        self.folder = folder
        self.before = events(folder)
        command = [sys.executable, "-m", "rar_jax.main", "--config=configs/digits.py", f"--workdir={folder}"]
        command += ["--config.model.width=16", "--config.model.depth=1", "--config.model.mlp_width=32"]
        command += ["--config.eval.num_images=32", "--config.eval.every=20", "--config.eval.samples_per_class=0"]
        command += ["--config.eval.report_samples=0", "--config.checkpoint.every=20", "--config.train.log_every=5"]
        command += [f"--config.train.stop_step={STEPS}", *overrides]
        command += [f"--coordinator_address=127.0.0.1:{free_port()}", f"--num_processes={count}"]
        flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        inherited = {name: os.environ[name] for name in ("PATH", "XDG_CACHE_HOME")}
        environment = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **inherited}
        self.logs = [folder.with_name(f"{folder.name}-{time.monotonic_ns()}-{i}.log") for i in range(count)]
        self.processes = []
        for i, log in enumerate(self.logs):
            mine = [*command, f"--process_id={i}", *(each[i] if each else ())]
            with log.open("w") as file:
                self.processes.append(subprocess.Popen(mine, cwd=ROOT, env=environment, stdout=file, stderr=file))

    def log_texts(self):
        return [log.read_text() for log in self.logs]

    def until(self, step):
        """Waits until these processes, not earlier ones in the same folder, have logged a step."""
        deadline = time.monotonic() + 300
        while events(self.folder) == self.before or max(losses(self.folder), default=0) < step:
            assert all(process.poll() is None for process in self.processes), self.log_texts()
            assert time.monotonic() < deadline, self.log_texts()
            time.sleep(0.02)

    def wait(self, seconds=300):
        """Waits for all processes and returns their exit codes."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(timeout=deadline - time.monotonic()) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()


def events(folder):
    """Returns the files of TensorBoard. There is one for each process that wrote metrics."""
    return sorted(folder.glob("events.*"))


def losses(folder):
    return {entry["step"]: entry["train/loss"] for entry in read_metrics(folder) if "train/loss" in entry}


def saved(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def test_interrupted_runs_of_two_and_four_processes_log_the_losses_of_one_process(tmp_path):
    run = tmp_path / "run"
    two = Processes(run, 2, "--config.eval.score_every=0")
    two.until(10)
    two.processes[1].send_signal(signal.SIGTERM)
    assert two.wait() == [75, 75], two.log_texts()
    (step,) = saved(run)
    assert 10 < step < STEPS
    assert f"asked to end: at step {step} of {STEPS}" in two.log_texts()[0]
    # Only the first process writes and logs.
    assert len(events(run)) == 1
    assert "Parameters" in two.log_texts()[0] and "Parameters" not in two.log_texts()[1]

    four = Processes(run, 4, "--config.mesh.fsdp=2", "--config.eval.score_every=0")
    four.until(step + 5)
    four.processes[2].kill()
    codes = four.wait(SOON)
    assert codes[2] == -signal.SIGKILL and not {0, 75} & set(codes), four.log_texts()
    others = [text for i, text in enumerate(four.log_texts()) if i != 2]
    assert all(
        "If another process ended earlier, its log says why" in text or "task died" in text for text in others
    ), others

    config = read_config(run)
    fields = to_config_dict(config)
    fields.mesh.fsdp = 1
    assert loop.train(prepare(from_config_dict(fields), run))
    assert loop.train(prepare(from_config_dict(fields), tmp_path / "whole"))
    logged, expected = losses(run), losses(tmp_path / "whole")
    assert list(logged) == list(expected)
    np.testing.assert_allclose(list(logged.values()), list(expected.values()), rtol=1e-4)


@pytest.mark.long
def test_signals_end_all_processes_at_one_step_and_two_resume_a_run_of_four(tmp_path):
    """After SIGTERM to all or SIGINT to one, all processes end at the same step with the same exit code."""
    run = tmp_path / "run"
    four = Processes(run, 4)
    four.until(10)
    for process in four.processes:
        process.send_signal(signal.SIGTERM)
    assert four.wait() == [75] * 4, four.log_texts()
    (step,) = saved(run)
    two = Processes(run, 2, "--config.mesh.fsdp=2")
    two.until(step + 5)
    two.processes[0].send_signal(signal.SIGINT)
    assert two.wait() == [75, 75], two.log_texts()
    assert saved(run)[-1] > step
    two = Processes(run, 2)
    assert two.wait() == [0, 0], two.log_texts()
    assert list(losses(run)) == list(range(5, STEPS + 1, 5))


@pytest.mark.long
def test_a_signal_before_the_first_step_of_a_resumed_run_ends_it(tmp_path):
    run = tmp_path / "run"
    two = Processes(run, 2, "--config.train.stop_step=20")
    assert two.wait() == [0, 0], two.log_texts()
    # The signal arrives before the first step, while the run restores, measures the product rate and compiles.
    two = Processes(run, 2)
    while "steps 20 to" not in two.log_texts()[0]:
        assert two.processes[0].poll() is None, two.log_texts()
        time.sleep(0.02)
    two.processes[1].send_signal(signal.SIGTERM)
    assert two.wait(SOON) == [75, 75], two.log_texts()
    assert "asked to end: at step 20 of" in two.log_texts()[0] and saved(run) == [20]


@pytest.mark.long
@pytest.mark.parametrize(("which", "sent"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_killed_or_hanging_process_ends_the_others_and_the_run_can_resume(tmp_path, which, sent):
    run = tmp_path / "run"
    two = Processes(run, 2)
    two.until(10)
    two.processes[which].send_signal(sent)
    began = time.monotonic()
    other = two.processes[1 - which]
    try:
        assert other.wait(SOON) not in (0, 75)
    finally:
        two.processes[which].kill()
    print(f"{sent.name} to process {which}: ended after {time.monotonic() - began:.1f} s with code {other.returncode}")
    assert any(words in two.log_texts()[1 - which] for words in ("its log says why", "task died", "stopped sending"))
    two = Processes(run, 2)
    assert two.wait() == [0, 0], two.log_texts()
    assert list(losses(run)) == list(range(5, STEPS + 1, 5))


@pytest.mark.long
def test_all_processes_skip_a_damaged_checkpoint(tmp_path):
    run = tmp_path / "run"
    two = Processes(run, 2)
    assert two.wait() == [0, 0], two.log_texts()
    assert saved(run) == [20, 40, 60]
    files = sorted((run / "checkpoints" / "60" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(files[-1].read_bytes())
    data[len(data) // 2] ^= 4
    files[-1].write_bytes(data)
    two = Processes(run, 2)
    assert two.wait() == [0, 0], two.log_texts()
    assert "went back to the checkpoint of step 40" in two.log_texts()[0]
    assert (run / "damaged_checkpoints" / "60").exists() and saved(run) == [20, 40, 60]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_two_processes_start_from_given_weights_as_one_does(tmp_path, kind):
    """The weights are a run's folder or a published file, and the parameters are sharded over both processes."""
    weights = tmp_path / "weights"
    begin = [f"--config.init_from={weights}", "--config.train.stop_step=5"]
    one = Processes(weights, 1, "--config.train.stop_step=5", "--config.model.grid_side=8")
    assert one.wait() == [0], one.log_texts()
    if kind == "file":
        file = tmp_path / "weights.safetensors"
        command = [sys.executable, "-m", "rar_jax", "convert", f"--input={weights}", f"--output={file}"]
        subprocess.run(command, cwd=ROOT, check=True)
        begin[0] = f"--config.init_from={file}"
    for folder, count, more in (("one", 1, ()), ("two", 2, ["--config.mesh.fsdp=2"])):
        run = Processes(tmp_path / folder, count, *begin, *more)
        assert run.wait() == [0] * count, run.log_texts()
    assert losses(tmp_path / "two")[5] == pytest.approx(losses(tmp_path / "one")[5], rel=1e-4)


@pytest.mark.long
def test_a_mistake_in_one_process_ends_all_of_them(tmp_path):
    """One host lacks its data or has another folder, or other processes train in the folder."""
    lacking = tmp_path / "lacking"
    lacking.write_text("")
    two = Processes(tmp_path / "run", 2)
    two.until(5)
    second = Processes(tmp_path / "run", 2)
    assert second.wait(SOON) == [2, 2], second.log_texts()
    assert all(re.search(r"error: .*process .+:\d+ trains there; stop it", text) for text in second.log_texts())
    for process in two.processes:
        process.send_signal(signal.SIGTERM)
    assert two.wait() == [75, 75]
    third = Processes(tmp_path / "run", 2, each=[(), [f"--config.data.path={lacking}"]])
    assert third.wait(SOON) == [2, 2], third.log_texts()
    assert f"error: process 1: {lacking}" in third.log_texts()[0]
    fourth = Processes(tmp_path / "run", 2, each=[(), [f"--workdir={tmp_path / 'mine'}"]])
    assert fourth.wait(SOON) == [2, 2], fourth.log_texts()
    assert f"--workdir={tmp_path / 'mine'} is not the same folder as in the first process" in fourth.log_texts()[0]


TOGETHER = """
import sys
import jax
import numpy as np
from jax.sharding import Mesh
from jax.experimental import multihost_utils
from rar_jax.checkpoints.weights import load_weights
from rar_jax.errors import UserError
from rar_jax.parallel.distributed import from_all, initialize, together
from rar_jax.parallel.mesh import AXES, batch_sharding, host_rows, put_batch, put_tree

process = int(sys.argv[1])
initialize(f"127.0.0.1:{sys.argv[2]}", 2, process)


def outcome(error):
    try:
        with together():
            if process == 1 and error is not None:
                raise error
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return "fine"


assert from_all(f"from {process}") == ["from 0", "from 1"]
for error in (None, UserError("--flag=1 is wrong"), OSError(28, "No space left"), KeyError("ema"), ValueError()):
    print(outcome(error))
# Only the first process has the weights.
try:
    with together():
        load_weights(sys.argv[3] if process == 0 else "none", "inception")
except UserError as error:
    print(error)
assert from_all("still there") == 2 * ["still there"]
first, second = ([device for device in jax.devices() if device.process_index == i] for i in (0, 1))
alternating = [device for pair in zip(first, second) for device in pair]
pairs = first[:2] + second[:2] + second[2:] + first[2:]
whole = np.arange(48).reshape(16, 3)
for devices in (first + second, alternating, pairs):
    mesh = Mesh(np.array(devices).reshape(4, 2, 1), AXES)
    rows = host_rows(mesh, 16)
    put = put_batch({"x": whole[rows]}, mesh)["x"]
    assert put.shape == whole.shape
    for shard in put.addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[shard.index])
    print(rows.tolist())
# No process gathers the copies of others.
multihost_utils.process_allgather = None
for shard in put_tree({"x": whole}, batch_sharding(mesh))["x"].addressable_shards:
    np.testing.assert_array_equal(shard.data, whole[shard.index])
"""


def test_processes_fail_together_and_put_rows_that_are_not_contiguous(tmp_path):
    """This test does not train.

    The devices of the processes come one process after the other, interleaved as in a hybrid mesh, or in pairs.
    """
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", TOGETHER]
    weights = Weights("inception", None, {"a": jax.numpy.ones((4, 4))}, "")
    save_weights(tmp_path / "weights", weights)
    last = [str(free_port()), tmp_path / "weights"]
    two = [
        subprocess.Popen([*command, str(i), *last], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in two]
    # Gloo's threads write to the same pipe, and the end of a line can come late, as an empty line.
    outputs = [[line for line in lines if line and not line.startswith("[Gloo]")] for lines in outputs]
    assert [process.returncode for process in two] == [0, 0]
    assert outputs[0][:5] == [
        "fine",
        "UserError: process 1: --flag=1 is wrong",
        "UserError: process 1: [Errno 28] No space left",
        "RuntimeError: process 1: KeyError: 'ema'",
        "RuntimeError: process 1: ValueError: ",
    ]
    own = ["UserError: --flag=1 is wrong", "OSError: [Errno 28] No space left", "KeyError: 'ema'", "ValueError: "]
    assert outputs[1][:5] == ["fine", *own]
    assert outputs[0][5].startswith("process 1: no weights in 'none'") and outputs[1][5].startswith("no weights in")
    assert outputs[0][6:] == [str([*range(8)]), "[0, 1, 4, 5, 8, 9, 12, 13]", "[0, 1, 2, 3, 12, 13, 14, 15]"]
    assert outputs[1][6:] == [str([*range(8, 16)]), "[2, 3, 6, 7, 10, 11, 14, 15]", "[4, 5, 6, 7, 8, 9, 10, 11]"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("host:1", None, 0), "--num_processes is missing"),
        ((None, 2, 0), "--coordinator_address is missing"),
        (("host:1", 2, 2), "--process_id=2 must be from 0 to below --num_processes=2"),
        (("host", 2, 1), "--coordinator_address=host must be host:port"),
        (("8476", 2, 1), "--coordinator_address=8476 must be host:port"),
    ],
)
def test_flags_that_do_not_go_together(flags, message):
    with pytest.raises(UserError, match=message):
        distributed.initialize(*flags)


def test_the_processes_are_found_by_the_environment(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: asked.append(options))
    monkeypatch.setattr(glob, "glob", lambda pattern: [])
    distributed.initialize()
    # There is one process in a shell within an allocation, in a step of one task, and if the flag says so.
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    distributed.initialize()
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    distributed.initialize()
    monkeypatch.setenv("SLURM_NTASKS", "8")
    distributed.initialize(num_processes=1)
    assert not asked
    distributed.initialize()
    assert asked.pop()["coordinator_address"] is None
    # Flags override the environment.
    distributed.initialize("host:1", 2, 1)
    assert asked.pop()["cluster_detection_method"] == "deactivate"
