"""How fast a run trains, and a trace of a few of its steps."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from rar_jax.parallel.distributed import is_first

_log = logging.getLogger(__name__)

_TRACED_STEPS = 3


class StepTimer:
    """Times the steps from one log line to the next; evaluations and saves in between do not count."""

    def __init__(self, batch_size: int, step_flops: float, product_rate: float):
        """Begins.

        Args:
          batch_size: images a step.
          step_flops: of a step, a device: `costs.train_flops` of its images.
          product_rate: FLOP/s of a device, measured in this run.
        """
        self._batch_size = batch_size
        self._step_flops = step_flops
        self._product_rate = product_rate
        self.restart(0)

    def restart(self, step: int) -> None:
        """The steps after this one are timed from now on."""
        self._first = step
        self._waited = 0.0
        self._began = time.perf_counter()

    def next(self, batches: Iterator[Any]) -> Any:
        """The next batch; the time it takes is what the step waits for data."""
        began = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - began
        return batch

    def lap(self, step: int) -> dict[str, float]:
        """Of the steps since the restart, to be called when they are through; and restarts.

        Returns:
          steps_per_s; images_per_s; utilisation, which is 3 x the FLOPs of the forward pass of a device's images / the
          time of a step / the rate of products measured in this run (model FLOP utilisation: recomputation does not
          count); and data_wait, the share of the time in which the host waited for a batch. Nothing without steps.
        """
        seconds, steps, waited = time.perf_counter() - self._began, step - self._first, self._waited
        self.restart(step)
        if steps < 1:
            return {}
        rate = steps / seconds
        return {
            "steps_per_s": rate,
            "images_per_s": rate * self._batch_size,
            "utilisation": rate * self._step_flops / self._product_rate,
            "data_wait": waited / seconds,
        }


class Trace:
    """A trace of three steps, for TensorBoard's profile plugin and, as perfetto_trace.json.gz, for ui.perfetto.dev.

    Of the first process; the latter not on gs://, where JAX cannot write it.
    """

    def __init__(self, folder: epath.PathLike, first: int):
        """Of the steps from `first` on, into folder/plugins/profile; 0 traces nothing."""
        self._folder = str(folder)
        self._steps = range(first, first + _TRACED_STEPS) if first and is_first() else ()
        self._on = False

    def before(self, step: int) -> None:
        """This step is about to begin."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(self._folder, create_perfetto_trace="://" not in self._folder)
            self._on = True

    def after(self, step: int, values: Any) -> None:
        """This step was begun, and will give these values."""
        if self._on and step == self._steps[-1]:
            jax.block_until_ready(values)
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if not self._on:
            return
        self._on = False
        try:
            jax.profiler.stop_trace()
        # The profiler's errors are of many kinds; training need not end for them.
        except Exception as error:
            _log.error("no trace in %s: %s", self._folder, error)
