from unittest import mock

import tensorboardX
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from rar_jax.images.plots import plot_curves
from rar_jax.run_folder import check_folder, lock, read_config, write_config
from rar_jax.training.metrics import MetricsLog, read_metrics


def test_going_on_forgets_what_came_after_the_checkpoint(tmp_path):
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


class Bucket(MemoryFileSystem):
    """As of gs://: what is there can be written anew, not added to."""

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


def test_a_run_folder_on_a_bucket(monkeypatch, small_config):
    """The files that go through epath; checkpoints are Orbax's, and TensorBoard's events tensorboardX's."""
    bucket, folder = Bucket(), "gs://bucket/run"
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: bucket)
    monkeypatch.setattr(tensorboardX, "SummaryWriter", mock.MagicMock())
    check_folder("workdir", folder)
    assert lock(folder) is None
    write_config(folder, small_config())
    assert read_config(folder) == small_config()
    log = MetricsLog(folder, 0)
    for step in (10, 20):
        log.write(step, {"train/loss": step / 10})
        # Others can read it while it grows.
        assert read_metrics(folder)[-1] == {"step": step, "train/loss": step / 10}
    log.close()
    log = MetricsLog(folder, 10)
    log.write(20, {"train/loss": 5.0})
    log.close()
    assert [entry["train/loss"] for entry in read_metrics(folder)] == [1.0, 5.0]
    plot_curves(f"{folder}/figures/curves.png", read_metrics(folder), (0, 20))
    assert bucket.find("/bucket") == [
        f"/bucket/run/{name}" for name in ("config.json", "figures/curves.png", "metrics.jsonl", "speed.jsonl")
    ]
