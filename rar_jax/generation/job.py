"""Sampling jobs: one process or several sample many images into a folder, and resume after an interruption.

The files in the folder are the only record of the progress.

    job.json              all settings that decide the images; a job with other settings is refused
    images/000000.png     with `png`: image 0, and so on; a file with this name is complete
    batches/000007.npy    with `npz`: the images of batch 7, until the archive is written
    samples.npz           with `npz`: all images and their labels, written once all batches are there

Process p of P samples the batches p, p + P, ...; process 0 completes the job: it waits for all batches, writes
samples.npz and removes batches/. While it writes samples.npz, the images take twice their size on the disk.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from rar_jax.errors import UserError
from rar_jax.evaluation.image_sets import NpzImages, take
from rar_jax.files import create_atomically, hold_to_plan, replacing
from rar_jax.generation.archive import write_npz
from rar_jax.generation.generator import Generator
from rar_jax.images.files import write_png
from rar_jax.progress import Progress
from rar_jax.run_folder import lock
from rar_jax.sampling.options import Options
from rar_jax.sampling.own_pace import Pace
from rar_jax.sampling.sampler import pad_numbers

# The outputs of a job, and their names in its folder.
FILES = {"png": "images", "npz": "samples.npz"}
_PLAN = "job.json"
_BATCHES = "batches"
# Number of batches that are being fetched and written while the next one is sampled.
_WRITING = 2
# Each look lists the folders, which can be on a shared disk.
_SECONDS_BETWEEN_LOOKS = 2


class JobFolder:
    """The folder of a job, used by one of the processes that share the job."""

    def __init__(
        self,
        folder: epath.PathLike,
        plan: Mapping[str, Any],
        labels: np.ndarray,
        batch_size: int,
        outputs: Sequence[str],
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Starts a job, or resumes the one in the folder.

        Args:
          folder: the job's folder, which is created if necessary.
          plan: everything that decides the images; JSON values.
          labels: int [N], the labels of all images.
          batch_size: number of images in a batch; the last batch can have fewer.
          outputs: some of `FILES`.
          process_index: p, the number of this process, from 0.
          process_count: P, the number of processes that share the job.

        Raises:
          UserError: the folder has a job with another plan or holds images of an unknown job, another process works
            there under this number, or the folder cannot hold an .npz.
        """
        self.folder = epath.Path(folder)
        self._outputs, self._labels, self._batch_size = outputs, labels, batch_size
        self._process_index, self._process_count = process_index, process_count
        self._batches = range(-(-len(labels) // batch_size))
        self._npz = self.folder / FILES["npz"]
        check_outputs(folder, outputs)
        self._hold_to(plan)
        self._threads = concurrent.futures.ThreadPoolExecutor()
        self._lock = contextlib.ExitStack()
        # In a complete job, processes other than the first take no lock, because its file would be left behind.
        if process_index == 0 or self.unfinished():
            self._lock = lock(self.folder / _BATCHES, f"process_{process_index}", "samples")

    def __enter__(self) -> "JobFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._lock.close()

    def _hold_to(self, plan: Mapping[str, Any]) -> None:
        """Stores the plan of a new job, or checks that the stored plan is the same."""
        file = self.folder / _PLAN
        if not file.exists():
            for name in (*FILES.values(), _BATCHES):
                # Another process of this job may have stored the plan just now.
                if (self.folder / name).exists() and not file.exists():
                    raise UserError(f"--out={self.folder} holds {name} of another job: choose another folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            # If another process starts another job at the same time, one of the two is refused.
            create_atomically(file, json.dumps(plan, indent=2) + "\n")
        hold_to_plan("out", self.folder, json.loads(file.read_text()), plan)

    def numbers(self, batch: int) -> np.ndarray:
        """Returns the numbers of a batch's images, int [B]."""
        return np.arange(batch * self._batch_size, min((batch + 1) * self._batch_size, len(self._labels)))

    def _png(self, number: int) -> epath.Path:
        return self.folder / FILES["png"] / _png_name(number)

    def _kept(self, batch: int) -> epath.Path:
        return self.folder / _BATCHES / _kept_name(batch)

    def unfinished(self) -> list[int]:
        """Returns the batches, of all processes, that still lack a file."""
        # The batches are listed before the archive is looked for, because they are removed once it is complete.
        pngs, kept = (_names(self.folder / name) for name in (FILES["png"], _BATCHES))
        archived = "npz" not in self._outputs or self._npz.exists()

        def finished(batch):
            return (archived or _kept_name(batch) in kept) and (
                "png" not in self._outputs or all(_png_name(number) in pngs for number in self.numbers(batch))
            )

        return [batch for batch in self._batches if not finished(batch)]

    def own_batches(self) -> tuple[list[int], int]:
        """Returns this process's unfinished batches, and the number of images in all of its batches."""
        own = self._batches[self._process_index :: self._process_count]
        return [batch for batch in self.unfinished() if batch in own], self.count(own)

    def count(self, batches: Sequence[int]) -> int:
        """Returns the number of images in some batches."""
        return sum(len(self.numbers(batch)) for batch in batches)

    def write(self, batch: int, images: np.ndarray) -> None:
        """Writes the files that a batch, uint8 [B, H, W, 3], still lacks.

        Raises:
          OSError: the disk is full or broken.
        """
        if "png" in self._outputs:
            files = map(self._png, self.numbers(batch))
            missing = [(file, image) for file, image in zip(files, images, strict=True) if not file.exists()]
            # Pillow releases the interpreter lock while it compresses.
            list(self._threads.map(lambda png: write_png(*png), missing))
        if "npz" in self._outputs and not self._npz.exists() and not self._kept(batch).exists():
            data = io.BytesIO()
            np.save(data, images)
            with replacing(self._kept(batch)) as file:
                # Not `numpy.save`, whose error does not say that the disk is full.
                file.write(data.getbuffer())

    def complete(self) -> None:
        """Waits for the batches of all processes, writes the archive and removes the batches; for process 0 only.

        Raises:
          OSError: the disk is full or broken.
        """
        self._wait_for_batches()
        # Processes that were killed leave partial files behind.
        for leftover in [
            *self.folder.glob(f"{FILES['npz']}.*.partial"),
            *(self.folder / FILES["png"]).glob("*.partial"),
        ]:
            leftover.unlink(missing_ok=True)
        if "npz" in self._outputs and not self._npz.exists():
            self._write_archive()
        with contextlib.suppress(OSError):  # On NFS a lock that another process still holds cannot be removed.
            (self.folder / _BATCHES).rmtree()

    def _wait_for_batches(self) -> None:
        left = self.count(self.unfinished())
        if not left:
            return
        progress = Progress("images of other processes", len(self._labels), len(self._labels) - left, unit="image")
        while left:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            before, left = left, self.count(self.unfinished())
            progress.update(before - left, "waiting" if left else "")
        progress.close()

    def _write_archive(self) -> None:
        files = [self._kept(batch) for batch in self._batches]
        needed, free = sum(file.stat().length for file in files), shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"{FILES['npz']} needs {needed / 1e6:,.1f} MB of free space, but only {free / 1e6:,.1f} MB are free",
            )
        progress = Progress(FILES["npz"], len(self._labels), unit="image")

        def batches() -> Iterator[np.ndarray]:
            for file in files:
                images = np.load(file)
                yield images
                progress.update(len(images))

        write_npz(self._npz, (len(self._labels), *np.load(files[0], mmap_mode="r").shape[1:]), batches(), self._labels)
        progress.close()

    def read(self, numbers: Sequence[int]) -> np.ndarray:
        """Reads images of a complete job by number, uint8 [len(numbers), H, W, 3]."""
        if "npz" in self._outputs:
            return take(NpzImages(self._npz), numbers)
        images = []
        for number in numbers:
            with self._png(number).open("rb") as file:
                images.append(np.asarray(Image.open(file)))
        return np.stack(images)


def _png_name(number: int) -> str:
    return f"{number:06d}.png"


def _kept_name(batch: int) -> str:
    return f"{batch:06d}.npy"


def check_outputs(folder: epath.PathLike, outputs: Sequence[str]) -> None:
    """Raises a `UserError` if a job in the folder cannot write some of `FILES`."""
    if "npz" in outputs and "://" in str(folder):
        raise UserError(f"--out={folder}: an .npz can only be written on a local file system; write PNGs there (--png)")


def job_images(path: epath.PathLike) -> epath.Path:
    """Returns where the images of a job's folder are: its .npz, which has labels, if there is one, else its PNGs.

    Any other path is returned unchanged.

    Raises:
      UserError: the job is not complete.
    """
    folder = epath.Path(path)
    if not (folder / _PLAN).exists():
        return folder
    plan = json.loads((folder / _PLAN).read_text())
    # Files are renamed into place, the archive last.
    if "npz" in plan["outputs"].split(","):
        if (folder / FILES["npz"]).exists():
            return folder / FILES["npz"]
    elif sum(name.endswith(".png") for name in _names(folder / FILES["png"])) == plan["num"]:
        return folder / FILES["png"]
    raise UserError(f"{folder} has a job that is not complete: run the same command again to resume it")


def _names(folder: epath.Path) -> set[str]:
    """Returns the names of the files in a folder; none if the folder does not exist."""
    try:
        return {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return set()


def run_job(
    generator: Generator,
    labels: np.ndarray,
    folder: epath.PathLike,
    *,
    seed: int,
    options: Options,
    batch_size: int,
    outputs: Sequence[str],
    shown: Sequence[int],
    process_index: int = 0,
    process_count: int = 1,
    on_pace: Callable[[Pace], None] = lambda pace: None,
) -> np.ndarray | None:
    """Samples the unfinished images of this process's share of a job; process 0 then completes the job.

    While a batch is sampled, the batch before it is decoded to images, and earlier batches are written.

    Args:
      generator: the model.
      labels: int [N], the labels of all images; image k is the one that `Generator.generate` gives for the seed.
      folder: the job's folder.
      seed: seed of all draws.
      options: sampling options.
      batch_size: images sampled at once; rounded up to a multiple of the devices, and no more than needed.
      outputs: some of `FILES`.
      shown: numbers of the images to return, at least one.
      process_index: number of this process, from 0.
      process_count: number of processes that share the job.
      on_pace: see `sampling.sampler.sample_tokens`.

    Returns:
      The images `shown`, uint8 [len(shown), H, W, 3], in process 0; None in the others.

    Raises:
      UserError: an argument cannot be used, or the folder belongs to another job.
      OSError: the disk is full or broken. Complete files stay, and the same call resumes the job.
    """
    sampler = generator.sampler
    # Raises a UserError for options that do not fit the model before the folder is created.
    options.traced(sampler.model.config, seed), options.plan(sampler.model.config)
    batch_size = sampler.batch_size(batch_size, len(labels))
    plan = generator.origin | _plan_of_labels(labels, sampler.model.config.num_classes) | {"seed": seed}
    plan |= dataclasses.asdict(options)
    plan |= {"batch_size": batch_size, "devices": sampler.mesh.size, "outputs": ",".join(outputs)}
    with JobFolder(folder, plan, labels, batch_size, outputs, process_index, process_count) as job:
        _sample(generator, labels, job, seed, options, batch_size, on_pace)
        if process_index:
            return None
        job.complete()
        return job.read(shown)


def _plan_of_labels(labels: np.ndarray, num_classes: int) -> dict[str, str | int]:
    """Returns what the plan of a job says of its labels, int [N]."""
    classes = list(dict.fromkeys(labels.tolist()))
    return {
        "classes": "all" if classes == [*range(num_classes)] else ",".join(map(str, classes)),
        "num": len(labels),
        "labels": hashlib.sha256(np.asarray(labels, "<i4").tobytes()).hexdigest()[:12],
    }


def _sample(
    generator: Generator,
    labels: np.ndarray,
    job: JobFolder,
    seed: int,
    options: Options,
    batch_size: int,
    on_pace: Callable[[Pace], None],
) -> None:
    """Samples and writes this process's unfinished batches."""
    todo, share = job.own_batches()
    progress = Progress("sample", share, done=share - job.count(todo), unit="image")
    writer = concurrent.futures.ThreadPoolExecutor(1)
    writing = collections.deque()

    def settle(left):
        """Waits until at most `left` batches are being written, and raises the errors of those that failed."""
        while len(writing) > left or (writing and writing[0][1].done()):
            batch, written = writing.popleft()
            written.result()
            progress.update(job.count([batch]))

    def write(batch, images):
        job.write(batch, images())

    def begin(batch):
        numbers = pad_numbers(job.numbers(batch), batch_size)
        return batch, *generator.sampler.decode(labels[numbers], numbers, seed, options)

    try:
        # In pairs, so that the devices begin the next batch before the images of this one are decoded and written.
        for (batch, codes, pace), _ in itertools.pairwise(itertools.chain(map(begin, todo), [None])):
            count = job.count([batch])
            images = generator.tokenizer.begin_decode(np.asarray(codes)[:count])
            if pace is not None:
                on_pace(Pace(*(np.asarray(each)[:count] for each in pace)))
            writing.append((batch, writer.submit(write, batch, images)))
            settle(_WRITING)
        settle(0)
    finally:
        writer.shutdown(cancel_futures=True)
        progress.close()
