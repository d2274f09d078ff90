"""Metrics on disk: metrics.jsonl, speed.jsonl and TensorBoard events, without TensorFlow."""

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
        self._path = folder / FILE
        kept = [entry for entry in read_metrics(folder) if entry["step"] <= step]
        self._lines = _Lines(folder / FILE, "".join(json.dumps(entry) + "\n" for entry in kept))
        speed = folder / SPEED_FILE
        self._speed = _Lines(speed, speed.read_text() if speed.exists() else "")
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

    def close(self) -> None:
        """Flushes everything."""
        if not self._writes:
            return
        self._lines.close()
        self._speed.close()
        self._events.close()


class _Lines:
    """A file of JSON lines. On gs://, where nothing can be appended to a file, it is written anew with each."""

    def __init__(self, path: epath.Path, text: str):
        """Begins with `text`."""
        write_atomically(path, text)
        self._path, self._text = path, text
        self._file = None if "://" in str(path) else path.open("a")

    def add(self, values: dict[str, float]) -> None:
        line = json.dumps(values) + "\n"
        if self._file is None:
            self._text += line
            write_atomically(self._path, self._text)
        else:
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(run_folder: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, oldest first; a last line cut short by a crash is left out."""
    return read_json_lines(epath.Path(run_folder) / FILE)
