"""Metrics on disk: metrics.jsonl, speed.jsonl and TensorBoard events, without TensorFlow."""

import concurrent.futures
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

from rar_jax.files import JsonLinesFile, read_json_lines, warn_of_write_errors
from rar_jax.parallel.distributed import is_first
from rar_jax.training.speed import StepTimer

_log = logging.getLogger(__name__)

FILE = "metrics.jsonl"
# Separate from the other metrics, which an interrupted run reproduces bit for bit.
SPEED_FILE = "speed.jsonl"
# Time between two writes of TensorBoard's events.
_FLUSH_SECONDS = 60


class _Events:
    """TensorBoard's events, written by a thread. If they cannot be written, the run continues without them.

    tensorboardX's own queue would block the run for ever after an error of its thread.
    """

    def __init__(self, folder: epath.Path, step: int):
        """Opens a new file of events. TensorBoard drops those of earlier files after `step`."""
        self._prefix = str(folder / "events")
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._writer, self._failed, self._flushed = None, False, time.monotonic()
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._thread.submit(self._write, [event_pb2.Event(step=step + 1, session_log=start)], True)

    def add(self, step: int, summaries: Sequence[summary_pb2.Summary]) -> None:
        """Adds the summaries of a step."""
        now = time.time()
        events = [event_pb2.Event(step=step, wall_time=now, summary=each) for each in summaries]
        self._thread.submit(self._write, events)

    def flush(self) -> None:
        """Asks the thread to write all events to the disk, and does not wait."""
        self._thread.submit(self._write, (), True)

    def close(self) -> None:
        """Writes all events to the disk, and closes the file."""
        self.flush()
        self._thread.submit(lambda: self._failed or self._writer.close())
        self._thread.shutdown()

    def _write(self, events: Sequence[event_pb2.Event], flush: bool = False) -> None:
        if self._failed:
            return
        try:
            self._writer = self._writer or EventsWriter(self._prefix)
            for event in events:
                self._writer.write_event(event)
            # A bucket gets the whole file each time.
            if flush or time.monotonic() > self._flushed + _FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()
        # Buckets raise many kinds of errors.
        except Exception as error:
            self._failed = True
            _log.warning("TensorBoard gets no more events of this run: %s", error)


class MetricsLog:
    """The metrics of a run. The first process writes them; the others do nothing.

    A log that is opened again at a step drops the lines that an earlier process wrote after that step.
    """

    def __init__(self, run_folder: epath.PathLike, step: int):
        """Opens the log of a run that resumes at `step` (0: a new run)."""
        self._writes = is_first()
        if not self._writes:
            return
        folder = epath.Path(run_folder)
        kept = [entry for entry in read_metrics(folder) if entry["step"] <= step]
        self._lines = JsonLinesFile(folder / FILE, kept)
        self._speed = JsonLinesFile(folder / SPEED_FILE, read_json_lines(folder / SPEED_FILE))
        self._events = _Events(folder, step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line of scalars."""
        if not self._writes:
            return
        with warn_of_write_errors(self._lines.path):
            self._lines.add({"step": step, **values})
        self._events.add(step, [summary.scalar(name, value) for name, value in values.items()])

    def write_speed(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line with the speed of the steps since the last such line."""
        if not self._writes:
            return
        with warn_of_write_errors(self._speed.path):
            self._speed.add({"step": step, **values})
        self._events.add(step, [summary.scalar(f"speed/{name}", value) for name, value in values.items()])

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3], to TensorBoard."""
        if not self._writes:
            return
        self._events.add(step, [summary.image(name, image, dataformats="HWC")])

    def flush(self) -> None:
        """Waits until the metrics that a resumed run reads are on the disk, or cannot be written; a warning says so."""
        if self._writes:
            with warn_of_write_errors(self._lines.path):
                self._lines.flush()
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes all files."""
        if not self._writes:
            return
        self._events.close()
        for file in (self._lines, self._speed):
            with warn_of_write_errors(file.path):
                file.close()


class TrainingMetrics:
    """Collects the metrics of every step, and logs their means.

    Attributes:
      pending: the metrics of the steps that are not logged yet, arrays on the devices or floats. A checkpoint stores
        them, so that the log of a resumed run does not show where it was interrupted.
    """

    def __init__(
        self,
        log: MetricsLog,
        schedules: Callable[[int], Mapping[str, Any]],
        steps_per_epoch: int,
        pending: Sequence[Mapping[str, Any]] = (),
    ):
        """Starts with the pending metrics of a checkpoint, or with none.

        Args:
          log: receives the means.
          schedules: number of the update, from 0 -> the values of schedules at that update, such as the learning rate.
          steps_per_epoch: steps of an epoch.
          pending: metrics of earlier steps, from a checkpoint.
        """
        self._log = log
        self._schedules = schedules
        self._steps_per_epoch = steps_per_epoch
        self.pending = list(pending)

    def add(self, values: Mapping[str, jax.Array]) -> None:
        """Adds the metrics of a step, without waiting for it: scalars, among them "loss" and "skipped"."""
        self.pending.append(values)

    def fetch_pending(self) -> list[dict[str, float]]:
        """Returns the pending metrics as floats. Waits until their steps are computed."""
        return [{name: float(value) for name, value in each.items()} for each in jax.device_get(self.pending)]

    def write(self, step: int, timer: StepTimer) -> str:
        """Logs the means of the pending metrics, the schedules at the last update, and the speed.

        Skipped updates are counted and left out of the means.

        Args:
          step: number of the last step.
          timer: measures the speed of the steps.

        Returns:
          A summary for the progress bar.
        """
        # The host waits here for the step that it just started, so that the timer measures finished steps.
        values = self.fetch_pending()
        speed = timer.lap(step)
        self.pending = []
        taken = [each for each in values if not each["skipped"]]
        skipped = len(values) - len(taken)
        # Pending steps of a checkpoint can have metrics that the resumed run lacks, if its losses were changed.
        names = [name for name in taken[-1] if name != "skipped"] if taken else []
        means = {name: float(np.mean([each[name] for each in taken if name in each])) for name in names}
        means |= {"skipped": float(skipped), "epoch": step / self._steps_per_epoch}
        means |= {name: float(value) for name, value in self._schedules(step - 1).items()}
        self._log.write(step, {f"train/{name}": value for name, value in means.items()})
        note = f"loss {means['loss']:.3f}" if taken else "no finite update"
        if speed:
            self._log.write_speed(step, speed)
            note += f", utilisation {speed['utilisation']:.0%}, waiting for data {speed['data_wait']:.0%}"
        return note + (f", {skipped} updates skipped" if skipped else "")


# The lines of a metrics.jsonl.
Entries = Sequence[Mapping[str, Any]]


def read_metrics(run_folder: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl, oldest first, without a last line that a crash cut short."""
    return read_json_lines(epath.Path(run_folder) / FILE)


def points(entries: Entries, name: str) -> list[tuple[int, float]]:
    """Returns the steps and values of a logged name."""
    return [(entry["step"], entry[name]) for entry in entries if name in entry]
