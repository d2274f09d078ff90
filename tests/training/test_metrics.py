import json
import threading
from unittest import mock

import numpy as np
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from tensorboardX.proto import event_pb2

from rar_jax import files
from rar_jax.run_folder import check_folder, read_config, write_config
from rar_jax.training import metrics
from rar_jax.training.curves import plot_run
from rar_jax.training.evaluations import Evaluations
from rar_jax.training.metrics import MetricsLog, TrainingMetrics, read_metrics
from rar_jax.training.speed import StepTimer


def test_a_resumed_log_drops_lines_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.write(step, {"train/loss": step / 10})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "train/lo')  # cut short by a crash
    log = MetricsLog(tmp_path, 20)
    log.write(30, {"train/loss": 9.0})
    log.close()
    expected = [(10, 1.0), (20, 2.0), (30, 9.0)]
    assert [(entry["step"], entry["train/loss"]) for entry in read_metrics(tmp_path)] == expected
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) >= 1


def events(folder):
    """Returns what the files of TensorBoard in a folder hold: (step, name, value) of scalars and (step, size)."""
    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            # A length of 8 bytes and its checksum of 4, the event, and its checksum.
            length = int.from_bytes(data[:8], "little")
            event, data = event_pb2.Event.FromString(data[12 : 12 + length]), data[16 + length :]
            if event.HasField("session_log"):
                found.append((event.step, "start"))
            for value in event.summary.value:
                size = (value.image.height, value.image.width)
                found.append((event.step, value.tag, size if value.HasField("image") else value.simple_value))
    return found


def test_tensorboard_gets_scalars_and_images(tmp_path):
    """A resumed log tells TensorBoard to drop the steps after the checkpoint."""
    image = np.zeros((2, 3, 3), np.uint8)
    log = MetricsLog(tmp_path, 0)
    log.write(10, {"train/loss": 1.5, "train/epoch": 0.5})
    log.write_speed(10, {"steps_per_s": 2.0})
    log.write_image(10, "samples", image)
    log.close()
    written = [
        (1, "start"),
        (10, "train/loss", 1.5), (10, "train/epoch", 0.5), (10, "speed/steps_per_s", 2.0), (10, "samples", (2, 3)),
    ]  # fmt: skip
    assert events(tmp_path) == written
    for file in tmp_path.glob("events.*"):
        file.unlink()
    MetricsLog(tmp_path, 20).close()
    assert events(tmp_path) == [(21, "start")]


def test_a_run_continues_without_tensorboard(tmp_path, monkeypatch, caplog):
    """The queue of tensorboardX holds ten events, and blocks once its thread has failed."""
    monkeypatch.setattr(metrics.EventsWriter, "write_event", mock.Mock(side_effect=[None, None, OSError("no space")]))
    log = MetricsLog(tmp_path, 0)
    for step in range(1, 30):
        log.write(step, {"train/loss": 1.0})
    log.close()
    assert len(read_metrics(tmp_path)) == 29
    assert caplog.messages == ["TensorBoard gets no more events of this run: no space"]


def test_the_speed_log_is_continued_after_a_crash(tmp_path):
    MetricsLog(tmp_path, 0).write_speed(10, {"steps_per_s": 1.0})
    with (tmp_path / "speed.jsonl").open("a") as file:
        file.write('{"step": 20, "ste')
    log = MetricsLog(tmp_path, 10)
    log.write_speed(30, {"steps_per_s": 3.0})
    log.close()
    lines = (tmp_path / "speed.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 30]


class Bucket(MemoryFileSystem):
    """A stand-in for gs://, where a file can be replaced but not appended to."""

    store, pseudo_dirs = {}, [""]
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").strip("/")

    def exists(self, path, **options):
        if self._strip_protocol(path) == "/":
            raise PermissionError("buckets are not for all to list")
        return super().exists(path, **options)

    def open(self, path, mode="rb", **options):
        if "a" in mode:
            raise NotImplementedError(mode)
        return super().open(path, mode, **options)


@pytest.fixture
def bucket(monkeypatch):
    bucket = Bucket()
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: bucket)
    monkeypatch.setattr(metrics, "EventsWriter", mock.MagicMock())
    yield bucket
    bucket.store.clear()


def test_a_slow_or_failing_bucket_delays_no_step_and_loses_no_line(bucket, monkeypatch, caplog):
    writes, go_on = [], threading.Event()

    def slow(path, text):
        writes.append(text.count("\n"))
        assert go_on.wait(60)

    log = MetricsLog("gs://bucket/slow", 0)
    monkeypatch.setattr(files, "write_atomically", slow)
    for step in range(1, 10):
        log.write(step, {"train/loss": 0.0})
    go_on.set()
    log.flush()
    # Lines that were added during the first write are written together.
    assert writes[-1] == 9 and len(writes) <= 3
    monkeypatch.setattr(files, "write_atomically", mock.Mock(side_effect=OSError("no space")))
    log.write(10, {"train/loss": 0.0})
    log.flush()
    log.close()
    assert caplog.messages == 2 * ["gs://bucket/slow/metrics.jsonl: no space; training is not affected"]


def test_a_run_folder_on_a_bucket(bucket, small_config):
    """All files that are written through epath. Orbax writes checkpoints, and tensorboardX writes events."""
    folder = "gs://bucket/run"
    check_folder("workdir", folder)
    write_config(folder, small_config())
    assert read_config(folder) == small_config()
    log = MetricsLog(folder, 0)
    for step in (10, 20):
        log.write(step, {"train/loss": step / 10})
        log.flush()
        # Others can read it while it grows.
        assert read_metrics(folder)[-1] == {"step": step, "train/loss": step / 10}
    log.close()
    log = MetricsLog(folder, 10)
    log.write(20, {"train/loss": 5.0})
    Evaluations(folder, 10, [], log).close()
    log.close()
    assert [entry["train/loss"] for entry in read_metrics(folder)] == [1.0, 5.0]
    plot_run(f"{folder}/figures/curves.png", read_metrics(folder), (0, 20))
    names = ("config.json", "evaluations.jsonl", "figures/curves.png", "metrics.jsonl", "speed.jsonl")
    assert bucket.find("/bucket") == [f"/bucket/run/{name}" for name in names]


def test_means_over_the_steps_since_the_last_line(tmp_path):
    """Skipped updates are counted but left out of the means, and steps before a restart are included."""
    log = MetricsLog(tmp_path, 0)
    timer = StepTimer(batch_size=16, step_flops=1.0, product_rate=1.0)
    before = TrainingMetrics(log, lambda step: {"r": step / 10}, steps_per_epoch=8)
    before.add({"loss": np.float32(1), "skipped": np.float32(0)})
    after = TrainingMetrics(log, lambda step: {"r": step / 10}, 8, before.fetch_pending())
    after.add({"loss": np.float32(np.nan), "skipped": np.float32(1)})
    # A loss that the resumed run has, and the first one had not.
    after.add({"loss": np.float32(4), "l2": np.float32(7), "skipped": np.float32(0)})
    assert after.write(4, timer).startswith("loss 2.500, utilisation")
    after.add({"loss": np.float32(np.nan), "skipped": np.float32(1)})
    assert after.write(5, timer).startswith("no finite update")
    log.close()
    assert read_metrics(tmp_path) == [
        {"step": 4, "train/loss": 2.5, "train/l2": 7.0, "train/skipped": 1.0, "train/epoch": 0.5, "train/r": 0.3},
        {"step": 5, "train/skipped": 1.0, "train/epoch": 0.625, "train/r": 0.4},
    ]
