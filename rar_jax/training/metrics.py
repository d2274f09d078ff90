"""Metrics on disk: metrics.jsonl, speed.jsonl and TensorBoard events, without TensorFlow."""

import json
from typing import Any

import numpy as np
import tensorboardX
from etils import epath

from rar_jax.files import write_atomically

FILE = "metrics.jsonl"
# Apart from the others, which a run that was interrupted repeats to the last bit.
SPEED_FILE = "speed.jsonl"


class MetricsLog:
    """A run's metrics. Opening it again at a step forgets what an earlier process wrote after that step."""

    def __init__(self, run_folder: epath.PathLike, step: int):
        """Opens the log of a run that goes on from `step` (0: a new one)."""
        folder = epath.Path(run_folder)
        self._path = folder / FILE
        kept = [entry for entry in read_metrics(folder) if entry["step"] <= step]
        write_atomically(self._path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = self._path.open("a")
        self._speed = (folder / SPEED_FILE).open("a")
        self._events = tensorboardX.SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a line of scalars."""
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def write_speed(self, step: int, values: dict[str, float]) -> None:
        """Adds a line of how fast the steps before this one went."""
        self._speed.write(json.dumps({"step": step} | values) + "\n")
        self._speed.flush()
        for name, value in values.items():
            self._events.add_scalar(f"speed/{name}", value, step)

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a picture, uint8 [H, W, 3], to TensorBoard."""
        self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes everything."""
        self._file.close()
        self._speed.close()
        self._events.close()


def read_metrics(run_folder: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, oldest first; a last line cut short by a crash is left out."""
    path = epath.Path(run_folder) / FILE
    entries = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries
