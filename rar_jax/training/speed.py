"""Measures the speed of training, and records a profiler trace of a few steps."""

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
    """Times the steps between two log lines, without the evaluations and saves between them."""

    def __init__(self, batch_size: int, step_flops: float, product_rate: float):
        """Starts the clock.

        Args:
          batch_size: number of images per step.
          step_flops: FLOPs of a step on each device.
          product_rate: FLOP/s of matrix products on a device, measured in this run.
        """
        self._batch_size = batch_size
        self._step_flops = step_flops
        self._product_rate = product_rate
        self.restart(0)

    def restart(self, step: int) -> None:
        """Restarts the clock: the steps after this one are timed from now on."""
        self._first = step
        self._waited = 0.0
        self._began = time.perf_counter()

    def next(self, batches: Iterator[Any]) -> Any:
        """Returns the next batch, and counts the time until it is ready as waiting for data."""
        began = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - began
        return batch

    def lap(self, step: int) -> dict[str, float]:
        """Returns the speed of the steps since the restart, and restarts. The steps must be finished.

        Returns:
          steps_per_s; images_per_s; utilisation, the step's FLOPs divided by its time and by the product rate (model
          FLOP utilisation, so recomputation does not count); and data_wait, the share of the time in which the host
          waited for a batch. The result is empty if there were no steps.
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
    """A trace of three steps in the first process, for TensorBoard's profile plugin and for ui.perfetto.dev.

    The file for ui.perfetto.dev, perfetto_trace.json.gz, is not written to gs://, since JAX cannot do that.
    """

    def __init__(self, folder: epath.PathLike, first: int):
        """Traces three steps from `first` on into folder/plugins/profile. If `first` is 0, traces nothing."""
        self._folder = str(folder)
        self._steps = range(first, first + _TRACED_STEPS) if first and is_first() else ()
        self._on = False

    def before(self, step: int) -> None:
        """Must be called before a step: starts the trace at the first one."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(self._folder, create_perfetto_trace="://" not in self._folder)
            self._on = True

    def after(self, step: int, values: Any) -> None:
        """Must be called after a step is started, with its results: ends the trace after the last one."""
        if self._on and step == self._steps[-1]:
            jax.block_until_ready(values)
            self.close()

    def close(self) -> None:
        """Ends and writes the trace, if one was started."""
        if not self._on:
            return
        self._on = False
        try:
            jax.profiler.stop_trace()
        # The profiler raises errors of many kinds, and none of them should end training.
        except Exception as error:
            _log.error("no trace in %s: %s", self._folder, error)
