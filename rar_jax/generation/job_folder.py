"""The folder of a sampling job, which records its progress (`generation.job`)."""

import concurrent.futures
import contextlib
import errno
import io
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from rar_jax.errors import UserError
from rar_jax.evaluation.image_sets import NpzImages, take
from rar_jax.files import create_atomically, file_size, hold_to_plan, replacing
from rar_jax.generation.archive import write_npz
from rar_jax.images.files import write_png
from rar_jax.progress import Progress
from rar_jax.run_folder import lock

# The outputs of a job, and their names in its folder.
FILES = {"png": "images", "npz": "samples.npz"}
_PLAN = "job.json"
_BATCHES = "batches"
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
        needed, free = sum(map(file_size, files)), shutil.disk_usage(self.folder).free
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
