import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
from conftest import ROOT
from etils import epath
from PIL import Image
from safetensors.numpy import save_file

from rar_jax.errors import UserError
from rar_jax.evaluation.image_sets import open_images
from rar_jax.generation import job_folder
from rar_jax.generation.job import run_job
from rar_jax.generation.job_folder import JobFolder, job_images
from rar_jax.images.files import write_png
from rar_jax.models.sizes import ModelConfig
from rar_jax.sampling.options import Options

SHAPE = (4, 6, 3)
LABELS = np.arange(23) // 4


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(256, size=(23, *SHAPE), dtype=np.uint8)


def job(folder, index=0, count=1, outputs=("png", "npz"), **plan):
    plan = {"seed": 0, "num": 23, "outputs": ",".join(outputs)} | plan
    return JobFolder(folder, plan, LABELS, 5, outputs, index, count)


def write(folder, images, batches=None):
    """Writes some batches, by default the unfinished ones of this process."""
    for batch in folder.own_batches()[0] if batches is None else batches:
        folder.write(batch, images[folder.numbers(batch)])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def whole(images, tmp_path):
    with job(tmp_path / "whole") as folder:
        write(folder, images)
        folder.complete()
    return contents(tmp_path / "whole")


def test_a_complete_job_has_all_images_and_labels(images, whole, tmp_path):
    assert whole.keys() == {"job.json", "samples.npz", *(f"images/{i:06d}.png" for i in range(23))}
    with np.load(tmp_path / "whole" / "samples.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], images)
        np.testing.assert_array_equal(file["arr_1"], LABELS)
    for i in (0, 22):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "whole" / "images" / f"{i:06d}.png")), images[i])
    with job(tmp_path / "whole") as folder:
        assert folder.own_batches() == ([], 23)
        np.testing.assert_array_equal(folder.read([3, 0]), images[[3, 0]])
    with job(tmp_path / "pngs", outputs=["png"]) as folder:
        write(folder, images)
        folder.complete()
        np.testing.assert_array_equal(folder.read([3, 0]), images[[3, 0]])


def test_several_processes_make_the_same_files(images, whole, tmp_path):
    """Three processes share the batches. One is restarted and writes the last batch while process 0 waits."""
    out = tmp_path / "three"
    with job(out, 0, 3) as first, job(out, 1, 3) as second, job(out, 2, 3) as third:
        assert [each.own_batches() for each in (first, second, third)] == [([0, 3], 10), ([1, 4], 8), ([2], 5)]
        write(third, images)
        write(first, images)
        write(second, images, [1])
    assert {path.name for path in (out / "batches").glob("*.npy")} == {f"00000{batch}.npy" for batch in range(4)}
    with job(out, 1, 3) as second, job(out, 0, 3) as first:
        assert [each.own_batches()[0] for each in (first, second)] == [[], [4]]
        completing = threading.Thread(target=first.complete)
        completing.start()
        completing.join(timeout=0.2)
        assert completing.is_alive()
        write(second, images)
        completing.join()
    assert contents(out) == whole
    # A process that starts late finds nothing to do and leaves no files.
    with job(out, 1, 3) as second:
        assert second.own_batches()[0] == []
    assert contents(out) == whole


def test_batches_that_are_removed_during_a_check_are_not_sampled_again(images, tmp_path, monkeypatch):
    """Process 0 completes the job after process 1 has listed the PNGs, and before it looks for the archive."""
    with job(tmp_path, 0, 2) as first, job(tmp_path, 1, 2) as second:
        write(first, images)
        write(second, images)
        names, late = job_folder._names, iter([1])

        def list_and_be_overtaken(folder):
            found = names(folder)
            if folder.name == "batches":
                for _ in late:
                    first.complete()
            return found

        monkeypatch.setattr(job_folder, "_names", list_and_be_overtaken)
        assert second.own_batches()[0] == [] and (tmp_path / "samples.npz").exists()


def test_the_archive_needs_free_space_beside_the_batches(images, whole, tmp_path, monkeypatch):
    out = tmp_path / "full"
    with job(out) as folder:
        write(folder, images)
        monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=1000))
        with pytest.raises(OSError, match=r"samples\.npz needs 0\.0 MB of free space") as failed:
            folder.complete()
        assert failed.value.errno == errno.ENOSPC
    monkeypatch.undo()
    with job(out) as folder:
        assert folder.own_batches() == ([], 23)
        folder.complete()
    assert contents(out) == whole


def test_every_process_reports_a_full_disk(images, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with job(tmp_path, 1, 2, outputs=["npz"]) as second:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(OSError) as failed:
                write(second, images, [1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.errno == errno.EFBIG and not [*(tmp_path / "batches").glob("*.npy*")]


def test_a_killed_job_is_resumed(images, whole, tmp_path):
    """The killed job had another number of processes."""
    out = tmp_path / "killed"
    with job(out, 1, 2) as folder:
        write(folder, images, [1])
    with job(out) as folder:
        write(folder, images, [0])
    # One process died while it wrote batch 2, and another while it wrote the archive.
    (out / "batches" / "000002.npy.host-1-2.partial").write_bytes(images[10:12].tobytes())
    (out / "samples.npz.host-1-2.partial").write_bytes(whole["samples.npz"][:700])
    for i in (11, 13, 14):
        (out / "images" / f"{i:06d}.png").write_bytes(whole[f"images/{i:06d}.png"])
    (out / "images" / "000012.png.host-1-2.partial").write_bytes(b"half")
    # An image that exists is not written again.
    before = (out / "images" / "000013.png").stat().st_mtime_ns
    with job(out) as folder:
        assert folder.own_batches() == ([2, 3, 4], 23)
        write(folder, images)
        assert (out / "images" / "000013.png").stat().st_mtime_ns == before
    # All batches exist now, but the job is not complete.
    with job(out) as folder:
        assert folder.own_batches() == ([], 23)
        folder.complete()
    assert contents(out) == whole


def test_another_job_is_refused(images, tmp_path):
    with job(tmp_path / "a") as folder:
        write(folder, images, [0])
        with pytest.raises(UserError, match=r"process .+:\d+ samples there; stop it, or choose another folder"):
            job(tmp_path / "a")
    with pytest.raises(
        UserError, match=r"--out=.*a was started with seed=0, not 1, more=None, not 'npz': use the same"
    ):
        job(tmp_path / "a", seed=1, more="npz")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "samples.npz").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"holds samples\.npz of another job: choose another folder"):
        job(tmp_path / "b")
    with pytest.raises(UserError, match=r"an \.npz can only be written on a local file system; write PNGs there"):
        job("gs://bucket/a")
    assert contents(tmp_path / "b") == {"samples.npz": b"precious"}


def test_the_samples_of_a_job_are_scored_and_not_its_grid(images, tmp_path):
    for outputs, expected in ((["png", "npz"], "samples.npz"), (["npz"], "samples.npz"), (["png"], "images")):
        out = tmp_path / "_".join(outputs)
        with job(out, outputs=outputs) as folder:
            write(folder, images, [0])
            with pytest.raises(UserError, match="has a job that is not complete: run the same command again"):
                job_images(out)
            write(folder, images)
            folder.complete()
        write_png(out / "grid.png", images[0])
        found = open_images(job_images(out))
        assert found.name == str(out / expected) and len(found) == 23
    # A folder of batches that could not be removed does not matter.
    (tmp_path / "png" / "batches").mkdir()
    assert job_images(tmp_path / "png") == tmp_path / "png" / "images"
    # A path that is not the folder of a job is returned unchanged.
    for path in (tmp_path / "png" / "images", tmp_path / "npz" / "samples.npz", tmp_path / "nothing"):
        assert job_images(path) == path


def test_a_job_without_a_folder_of_batches_is_complete_with_its_last_picture(images, tmp_path):
    """On a bucket, a job of PNGs has no such folder."""
    (tmp_path / "job.json").write_text(json.dumps({"num": 2, "outputs": "png"}))
    write_png(tmp_path / "images" / "000000.png", images[0])
    with pytest.raises(UserError, match="has a job that is not complete: run the same command again"):
        job_images(tmp_path)
    write_png(tmp_path / "images" / "000001.png", images[1])
    assert job_images(tmp_path) == tmp_path / "images"


def test_one_of_two_jobs_that_start_at_the_same_time_is_refused(tmp_path, monkeypatch):
    """The second job starts after the first one has found the folder empty."""
    link, late = os.link, iter([1])

    def link_late(*paths):
        for seed in late:
            with job(tmp_path, seed=seed, outputs=["png"]):
                pass
        link(*paths)

    monkeypatch.setattr(os, "link", link_late)
    with pytest.raises(UserError, match="was started with seed=1, not 0"):
        job(tmp_path, outputs=["png"])
    assert json.loads((tmp_path / "job.json").read_text())["seed"] == 1
    assert not [*tmp_path.glob("*.partial")]


def test_two_processes_of_a_job_start_at_the_same_time(tmp_path, monkeypatch):
    """The first one has stored the plan and begun before the second one looks for images of another job."""
    kind, others = type(epath.Path(tmp_path)), iter([1])
    exists = kind.exists

    def exists_late(path):
        found = exists(path)
        if path.name == "job.json":
            for _ in others:
                job(tmp_path, 0, 2)
        return found

    monkeypatch.setattr(kind, "exists", exists_late)
    with job(tmp_path, 1, 2) as second:
        assert second.unfinished() == [0, 1, 2, 3, 4]


class Fakes:
    """A generator that records its calls. Its images can only be fetched while `writable` is set."""

    def __init__(self):
        self.events = []
        self.writable = threading.Event()
        self.writable.set()
        model = types.SimpleNamespace(config=ModelConfig(num_classes=6, grid_side=4))
        self.sampler = types.SimpleNamespace(
            model=model, mesh=types.SimpleNamespace(size=1), decode=self.decode,
            batch_size=lambda wanted, images: wanted,
        )  # fmt: skip
        self.tokenizer = types.SimpleNamespace(grid_side=4, downsampling=1, begin_decode=self.begin_decode)
        self.origin = {"model": "fake-0123456789ab", "step": 7, "tokenizer": "fake"}

    def decode(self, labels, numbers, seed, options):
        batch = numbers[0] // len(numbers)
        self.events.append(("sample", batch))
        fakes = self

        class Tokens:
            def __array__(self, dtype=None, copy=None):
                fakes.events.append(("tokens", batch))
                return numbers[:, None]

        return Tokens(), None

    def begin_decode(self, tokens):
        self.events.append(("images", tokens[0, 0] // 5))

        def images():
            assert self.writable.wait(timeout=30)
            return np.broadcast_to(tokens[:, :, None, None].astype(np.uint8), (len(tokens), 4, 4, 3))

        return images

    def run(self, folder, labels=LABELS, **changes):
        arguments = {"seed": 0, "options": Options(), "batch_size": 5, "outputs": ["npz"], "shown": [22, 7]}
        return run_job(self, labels, folder, **arguments | changes)


def test_the_next_batch_is_dispatched_before_the_last_one_is_fetched(tmp_path):
    fakes = Fakes()
    shown = fakes.run(tmp_path)
    assert shown.shape == (2, 4, 4, 3) and (shown[0] == 22).all() and (shown[1] == 7).all()
    order = [("sample", 0)]
    for batch in range(5):
        order += [("sample", batch + 1)] * (batch < 4) + [("tokens", batch), ("images", batch)]
    assert fakes.events == order
    # A finished job is not sampled again.
    assert (Fakes().run(tmp_path) == shown).all()


def test_memory_is_bounded_if_the_disk_is_slow(tmp_path):
    fakes = Fakes()
    fakes.writable.clear()
    running = threading.Thread(target=fakes.run, args=[tmp_path])
    running.start()
    deadline = time.monotonic() + 60
    while ("images", 2) not in fakes.events and time.monotonic() < deadline:
        time.sleep(0.01)
    running.join(timeout=0.3)
    # One batch is sampled while the images of three others wait to be fetched.
    assert fakes.events[-1] == ("images", 2) and ("sample", 3) in fakes.events and ("sample", 4) not in fakes.events
    fakes.writable.set()
    running.join()
    assert (tmp_path / "samples.npz").exists()


def test_the_plan_has_everything_that_decides_the_images(tmp_path):
    fakes = Fakes()
    fakes.run(tmp_path)
    plan = json.loads((tmp_path / "job.json").read_text())
    assert plan == {
        "model": "fake-0123456789ab", "step": 7, "tokenizer": "fake", "classes": "all", "num": 23,
        "labels": hashlib.sha256(LABELS.astype(np.int32).tobytes()).hexdigest()[:12], "seed": 0,
        "scan_order": "row_major", "guidance": "pow_cosine", "guidance_scale": 16.0, "guidance_power": 2.75,
        "temperature": 1.0, "top_k": 0, "top_p": 1.0, "steps": 0, "schedule": "uniform",
        "verify": False, "batch_size": 5, "devices": 1, "outputs": "npz",
    }  # fmt: skip
    # In jobs of older versions, the identity was a hash of the parameters.
    (tmp_path / "job.json").write_text(json.dumps(plan | {"model": "fake-e3b0c44298fc"}))
    with pytest.raises(
        UserError, match="was started with model='fake-e3b0c44298fc', not 'fake-0123456789ab': use the same"
    ):
        fakes.run(tmp_path)
    (tmp_path / "job.json").write_text(json.dumps(plan))
    # The numbers of images and classes are the same, but not the number of images per class.
    with pytest.raises(UserError, match="was started with labels="):
        fakes.run(tmp_path, labels=np.sort(5 - LABELS))
    with pytest.raises(UserError, match=r"was started with seed=0, not 1, top_k=0, not 3: use the same settings"):
        fakes.run(tmp_path, seed=1, options=Options(top_k=3))


def command(*options, before="pass"):
    """Starts the sampling command in a process that first runs the Python statements `before`."""
    run = f"import sys; from rar_jax.__main__ import main; {before}; sys.argv.insert(1, 'sample'); main()"
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.Popen(
        [sys.executable, "-c", run, *options],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ends(process, code=0):
    """Waits until a process ends, checks its exit code, and returns its output and its errors."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return output, errors


def kill_at(process, file, size):
    """Kills a process as soon as a file has at least `size` bytes."""
    while not file.exists() or file.stat().st_size < size:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.kill()
    ends(process, -signal.SIGKILL)


@pytest.fixture
def weights(golden, vqgan_file, tmp_path):
    save_file(golden.tensors("params/"), tmp_path / "rar.safetensors")
    return [f"--checkpoint={tmp_path / 'rar.safetensors'}", f"--tokenizer={vqgan_file}"]


def test_a_full_disk_and_a_kill_lose_nothing(weights, tmp_path):
    """One of two processes is killed, and the other cannot write files beyond a limit."""
    options = [*weights, "--num=420", "--batch_size=20", "--seed=5", "--npz", "--png"]
    undisturbed = command(*options, f"--out={tmp_path / 'whole'}")
    out = tmp_path / "out"
    options.append(f"--out={out}")
    second = command(*options, "--process_index=1", "--process_count=2")
    kill_at(second, out / "batches" / "000005.npy", 1)
    counts = []
    # First a batch does not fit on the disk, and then the archive does not.
    for room in (3_000, 50_000):
        full = command(*options, before=f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))")
        output, errors = ends(full, 1)
        assert output == ""
        assert errors.splitlines()[-1] == f"error: {out}: File too large; once there is room, the same command resumes"
        assert "Traceback" not in errors
        assert not [*out.rglob("*.partial")]
        written = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
        counts.append(len(written))
    assert counts[0] < 420 and counts[1] == 420
    ends(command(*options))
    ends(undisturbed)
    assert contents(out) == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())


@pytest.mark.long
def test_two_thousand_digits_killed_three_times(tmp_path):
    run = tmp_path / "run"
    overrides = ["--config.train.stop_step=30", "--config.eval.samples_per_class=0", "--config.eval.report_samples=0"]
    train = [sys.executable, "-m", "rar_jax.main", "--config=configs/digits.py", f"--workdir={run}", *overrides]
    subprocess.run(train, cwd=ROOT, check=True, timeout=300)
    options = [f"--checkpoint={run}", "--num=2000", "--batch_size=50", "--npz", "--png"]
    ends(command(*options, f"--out={tmp_path / 'whole'}"))
    for batch in (3, 15, 27):
        kill_at(command(*options, f"--out={tmp_path / 'out'}"), tmp_path / "out" / "batches" / f"{batch:06d}.npy", 1)
    ends(command(*options, f"--out={tmp_path / 'out'}"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    two = [f"--out={tmp_path / 'two'}", "--process_count=2"]
    processes = [command(*options, *two, f"--process_index={index}") for index in (1, 0)]
    assert ends(processes[0])[0].endswith("process 0 completes the job\n")
    ends(processes[1])
    assert contents(tmp_path / "two") == contents(tmp_path / "whole")
