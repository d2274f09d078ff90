"""Metrics on disk: metrics.jsonl, speed.jsonl and TensorBoard events, without TensorFlow."""

import concurrent.futures
import json
from typing import Any

import numpy as np
import tensorboardX
from etils import epath

from rar_jax.files import read_json_lines, write_atomically
from rar_jax.parallel.distributed import is_first

FILE = "metrics.jsonl"
# Apart from the others, which a run that was interrupted repeats to the last bit.
SPEED_FILE = "speed.jsonl"


class MetricsLog:
    """A run's metrics. Opening it again at a step forgets what an earlier process wrote after that step.

    Of several processes the first one writes.
    """

    def __init__(self, run_folder: epath.PathLike, step: int):
        """Opens the log of a run that goes on from `step` (0: a new one)."""
        self._writes = is_first()
        if not self._writes:
            return
        folder = epath.Path(run_folder)
        kept = [entry for entry in read_metrics(folder) if entry["step"] <= step]
        self._lines = _Lines(folder / FILE, kept)
        self._speed = _Lines(folder / SPEED_FILE, read_json_lines(folder / SPEED_FILE))
        self._events = tensorboardX.SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a line of scalars."""
        if not self._writes:
            return
        self._lines.add({"step": step} | values)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def write_speed(self, step: int, values: dict[str, float]) -> None:
        """Adds a line of how fast the steps before this one went."""
        if not self._writes:
            return
        self._speed.add({"step": step} | values)
        for name, value in values.items():
            self._events.add_scalar(f"speed/{name}", value, step)

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a picture, uint8 [H, W, 3], to TensorBoard."""
        if not self._writes:
            return
        self._events.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Waits until what was added is in the files that a run goes on from."""
        if self._writes:
            self._lines.flush()

    def close(self) -> None:
        """Flushes everything."""
        if not self._writes:
            return
        self._lines.close()
        self._speed.close()
        self._events.close()


class _Lines:
    """A file of JSON lines. On gs://, where nothing can be appended to a file, it is written anew, in a thread."""

    def __init__(self, path: epath.Path, entries: list[dict[str, Any]]):
        """Begins with some lines."""
        self._path, self._text = path, "".join(json.dumps(entry) + "\n" for entry in entries)
        write_atomically(path, self._text)
        self._written = self._text
        self._file = self._thread = None
        if "://" in str(path):
            self._thread = concurrent.futures.ThreadPoolExecutor(1)
            self._last = self._thread.submit(self._write)
        else:
            self._file = path.open("a")

    def add(self, values: dict[str, float]) -> None:
        line = json.dumps(values) + "\n"
        if self._file is not None:
            self._file.write(line)
            self._file.flush()
            return
        if self._last.done():
            # Raises what went wrong.
            self._last.result()
        self._text += line
        self._last = self._thread.submit(self._write)

    def _write(self) -> None:
        """Writes what there is by now, which is more than one line where lines come faster than they are written."""
        text = self._text
        if text != self._written:
            write_atomically(self._path, text)
            self._written = text

    def flush(self) -> None:
        """Waits until all is written."""
        if self._thread is not None:
            self._last.result()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            return
        self._thread.shutdown()
        self._last.result()


def read_metrics(run_folder: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, oldest first; a last line cut short by a crash is left out."""
    return read_json_lines(epath.Path(run_folder) / FILE)
