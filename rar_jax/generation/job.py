"""Jobs of sampling: any number of images into one folder, by one process or several, gone on with wherever it stopped.

What is in the folder is the progress: nothing else is kept of it.

    job.json              all that decides the images; another job is refused
    images/000000.png     with `png`: image 0, and so on; one that has its name is whole
    samples.npz           with `npz`: all images and their labels; while it grows samples.npz.partial
    batches/000007.npy    a batch that the .npz has not come to; the folder is gone when the job is complete

Process p of P samples the batches p, p + P, ...; process 0 alone writes the .npz, and completes the job.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from rar_jax.checkpoints.weights import fingerprint
from rar_jax.errors import UserError
from rar_jax.files import create_atomically, hold_to_plan, replacing
from rar_jax.generation.generator import Generator
from rar_jax.images.files import write_png
from rar_jax.images.npz import ImageArchive
from rar_jax.progress import Progress
from rar_jax.run_folder import lock
from rar_jax.sampling.options import Options

# What a job can write, and where.
FILES = {"png": "images", "npz": "samples.npz"}
_PLAN = "job.json"
_BATCHES = "batches"
# Batches that are being fetched and written while the next one is sampled.
_WRITING = 2
_SECONDS_BETWEEN_LOOKS = 0.5


class JobFolder:
    """The folder of a job, as one of its processes sees it."""

    def __init__(
        self,
        folder: epath.PathLike,
        plan: Mapping[str, Any],
        labels: np.ndarray,
        image_shape: tuple[int, int, int],
        batch_size: int,
        outputs: Sequence[str],
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Begins, or goes on with what is there.

        Args:
          folder: made if need be.
          plan: all that decides the images; JSON values.
          labels: int [N], of all images.
          image_shape: (H, W, 3).
          batch_size: images a batch; the last one can have fewer.
          outputs: some of `FILES`.
          process_index, process_count: p and P.

        Raises:
          UserError: the folder was begun with another plan or holds images of no known one, another process of this
            number is at work there, or it cannot hold an .npz.
        """
        self.folder = epath.Path(folder)
        self._outputs = outputs
        self._process_index, self._process_count = process_index, process_count
        self._num, self._batch_size = len(labels), batch_size
        check_outputs(folder, outputs)
        self._hold_to(plan)
        self._archive = ImageArchive(self.folder / FILES["npz"], image_shape, labels) if "npz" in outputs else None
        self._threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
        self._lock = None
        # Nothing is left of the other processes in a complete job.
        if process_index == 0 or self.unfinished():
            self._lock = lock(self.folder / _BATCHES, f"process_{process_index}.lock", "samples")
        if self._appends and not self._archive.path.exists():
            self._archive.open(batch_size)

    def __enter__(self) -> "JobFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        if self._archive is not None:
            self._archive.close()
        if self._lock is not None:
            self._lock.close()

    def _hold_to(self, plan: Mapping[str, Any]) -> None:
        file = self.folder / _PLAN
        if not file.exists():
            for name in (*FILES.values(), f"{FILES['npz']}.partial"):
                if (self.folder / name).exists():
                    raise UserError(f"--out={self.folder} holds {name} of another job: choose another folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            # Another process may begin another job at this moment: one of the two is refused.
            create_atomically(file, json.dumps(plan, indent=2) + "\n")
        hold_to_plan("out", self.folder, json.loads(file.read_text()), plan)

    @property
    def _appends(self) -> bool:
        return self._archive is not None and self._process_index == 0

    def numbers(self, batch: int) -> np.ndarray:
        """The numbers of a batch's images."""
        return np.arange(batch * self._batch_size, min((batch + 1) * self._batch_size, self._num))

    def _png(self, number: int) -> epath.Path:
        return self.folder / FILES["png"] / f"{number:06d}.png"

    def _waiting(self, batch: int) -> epath.Path:
        return self.folder / _BATCHES / f"{batch:06d}.npy"

    def unfinished(self) -> list[int]:
        """The batches of all processes of which something is still to be written."""
        # In this order: a batch is in the .npz before it waits no more.
        pngs, waiting = (_names(self.folder / name) for name in (FILES["png"], _BATCHES))
        appended = len(self._archive) if self._archive is not None else 0

        def finished(batch):
            numbers = self.numbers(batch)
            in_npz = numbers[-1] < appended or self._waiting(batch).name in waiting
            return ("npz" not in self._outputs or in_npz) and (
                "png" not in self._outputs or all(self._png(number).name in pngs for number in numbers)
            )

        return [batch for batch in range(-(-self._num // self._batch_size)) if not finished(batch)]

    def own_batches(self) -> tuple[list[int], int]:
        """The batches that this process has still to do, and how many images it has in all."""
        own = range(self._process_index, -(-self._num // self._batch_size), self._process_count)
        return [batch for batch in self.unfinished() if batch in own], self.count(own)

    def count(self, batches: Sequence[int]) -> int:
        """How many images some batches have."""
        return sum(len(self.numbers(batch)) for batch in batches)

    def write(self, batch: int, images: np.ndarray) -> None:
        """Writes what is missing of a batch, uint8 [B, H, W, 3].

        Raises:
          OSError: the disk is full, or does not work.
        """
        numbers = self.numbers(batch)
        if "png" in self._outputs:
            files = map(self._png, numbers)
            missing = [(file, image) for file, image in zip(files, images, strict=True) if not file.exists()]
            # Pillow holds no lock while it compresses.
            list(self._threads.map(lambda png: write_png(*png), missing))
        # What waits may be in front of this batch.
        self._collect()
        if self._archive is None or numbers[-1] < len(self._archive) or self._waiting(batch).exists():
            return
        if self._appends and numbers[0] == len(self._archive):
            self._archive.append(images)
            self._collect()
        else:
            data = io.BytesIO()
            np.save(data, images)
            with replacing(self._waiting(batch)) as file:
                # Of a full disk, `numpy.save` to a file does not say that it is full.
                file.write(data.getbuffer())

    def _collect(self) -> None:
        """Moves the batches whose turn it is into the .npz."""
        while self._appends and len(self._archive) < self._num:
            file = self._waiting(len(self._archive) // self._batch_size)
            if not file.exists():
                return
            self._archive.append(np.load(file))
            file.unlink()

    def complete(self) -> None:
        """Waits for the batches of other processes, and completes the job: process 0 does this at the end."""
        progress, left = None, self._left()
        while left:
            progress = progress or Progress("others' images", self._num, self._num - left, unit="image")
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            before, left = left, self._left()
            progress.update(before - left, "waiting for other processes" if left else "")
        if progress is not None:
            progress.close()
        if self._archive is not None and not self._archive.path.exists():
            self._archive.finish()
        # Of processes that were killed.
        for leftover in (self.folder / FILES["png"]).glob("*.partial"):
            leftover.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # On NFS a lock that another process still has cannot be removed.
            (self.folder / _BATCHES).rmtree()

    def _left(self) -> int:
        """How many images are still to be written, once those that wait are in the .npz."""
        self._collect()
        left = self.count(self.unfinished())
        # A batch can have come, and wait, since.
        return max(left, self._num - len(self._archive)) if self._archive is not None else left

    def read(self, numbers: Sequence[int]) -> np.ndarray:
        """Images of a complete job, uint8 [B, H, W, 3]."""
        if self._archive is not None:
            return self._archive.read(numbers)
        images = []
        for number in numbers:
            with self._png(number).open("rb") as file:
                images.append(np.asarray(Image.open(file)))
        return np.stack(images)


def check_outputs(folder: epath.PathLike, outputs: Sequence[str]) -> None:
    """Raises UserError if a job in a folder cannot write some of `FILES`."""
    if "npz" in outputs and "://" in str(folder):
        raise UserError(f"--out={folder}: an .npz grows on a file system of this machine only; write PNGs there")


def job_images(path: epath.PathLike) -> epath.Path:
    """Where the images of a job's folder are: in the .npz, which has their labels, if there is one.

    Other paths are what they are.

    Raises:
      UserError: the job is not complete.
    """
    folder = epath.Path(path)
    if not (folder / _PLAN).exists():
        return folder
    if (folder / FILES["npz"]).exists():
        return folder / FILES["npz"]
    if (folder / FILES["png"]).exists() and not (folder / _BATCHES).exists():
        return folder / FILES["png"]
    raise UserError(f"{folder} is of a job that is not complete: start it again, it goes on")


def _names(folder: epath.Path) -> set[str]:
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
    shown: Sequence[int] = (),
    process_index: int = 0,
    process_count: int = 1,
) -> np.ndarray | None:
    """Samples this process's share of a job, or what is missing of it; process 0 completes the job.

    While a batch is sampled, the one before it is turned into images, and those before that are written.

    Args:
      generator: the model.
      labels: int [N], of all images; image k is the one that `Generator.generate` gives for the seed.
      folder: of the job; see `JobFolder` for what it, `outputs`, `process_index` and `process_count` are.
      seed, options: of all draws.
      batch_size: images sampled at once; rounded up to a multiple of the devices, and no more than needed.
      shown: numbers of images to return.

    Returns:
      The images to show, uint8 [len(shown), H, W, 3], of process 0; None of the others.

    Raises:
      UserError: an argument cannot be used, or the folder is of another job.
      OSError: the disk is full, or does not work. What was written stays, and the same call goes on behind it.
    """
    sampler, tokenizer = generator.sampler, generator.tokenizer
    # Before the folder is begun.
    options.positions(sampler.model.config)
    batch_size = sampler.batch_size(batch_size, len(labels))
    classes = list(dict.fromkeys(labels.tolist()))
    plan = {
        "model": f"{generator.config.name}-{fingerprint(sampler.params)}",
        "step": generator.step,
        "tokenizer": tokenizer.fingerprint,
        "classes": "all" if classes == [*range(sampler.model.config.num_classes)] else ",".join(map(str, classes)),
        "num": len(labels),
        "labels": hashlib.sha256(np.asarray(labels, "<i4").tobytes()).hexdigest()[:12],
        "seed": seed,
        **dataclasses.asdict(options),
        "batch_size": batch_size,
        "devices": sampler.mesh.size,
        "outputs": ",".join(outputs),
    }
    side = tokenizer.grid_side * tokenizer.downsampling
    shape = (side, side, 3)
    with JobFolder(folder, plan, labels, shape, batch_size, outputs, process_index, process_count) as job:
        _sample(generator, labels, job, seed, options, batch_size)
        if process_index:
            return None
        job.complete()
        return job.read(shown)


def _sample(
    generator: Generator, labels: np.ndarray, job: JobFolder, seed: int, options: Options, batch_size: int
) -> None:
    """Samples and writes the batches that this process has still to do."""
    todo, share = job.own_batches()
    progress = Progress("sample", share, done=share - job.count(todo), unit="image")
    writer = concurrent.futures.ThreadPoolExecutor(1)
    writing = collections.deque()

    def settle(left):
        while len(writing) > left or (writing and writing[0][1].done()):
            batch, written = writing.popleft()
            written.result()
            progress.update(job.count([batch]))

    def write(batch, images):
        job.write(batch, images())

    try:
        sampling = None
        for batch in [*todo, None]:
            tokens = None
            if batch is not None:
                tokens = generator.sampler.decode_numbers(labels, job.numbers(batch), batch_size, seed, options)
            # The devices have the next batch; now they are asked for the images of the one before.
            if sampling is not None:
                before, codes = sampling
                images = generator.tokenizer.begin_decode(np.asarray(codes)[: job.count([before])])
                writing.append((before, writer.submit(write, before, images)))
                settle(_WRITING)
            sampling = batch, tokens
        settle(0)
    finally:
        writer.shutdown(cancel_futures=True)
        progress.close()
