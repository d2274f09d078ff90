"""How a run ends early: signals, and numbers that are not finite."""

import logging
import signal
import threading

import jax
from jax.experimental import multihost_utils

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(Exception):  # noqa: N818 (nothing is wrong)
    """Raised out of an evaluation or out of sampling when the run is to end; the step before it can be saved."""


class NonFiniteError(RuntimeError):
    """Training cannot go on: updates are not finite."""


class Preemption:
    """Whether the run was asked to end. A context: within it, SIGTERM and SIGINT only ask.

    A second SIGINT ends the process at once. With several processes JAX's own notice of preemption is what counts, so
    that all of them end at the same step, whichever got the signal; a Python handler for SIGTERM would silence it, and
    SIGINT is passed on to it as SIGTERM.
    """

    def __init__(self):
        self._several = jax.process_count() > 1
        self._asked = threading.Event()
        self._handlers = {}

    def __enter__(self):
        # Only the main thread may set handlers; elsewhere, as in a notebook's helper thread, nobody asks.
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT,) if self._several else _SIGNALS
            self._handlers = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number, _):
        # By now a log line could interrupt another one that is half written; the loop says it.
        self._asked.set()
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            if self._several:
                signal.raise_signal(signal.SIGTERM)

    def asked(self, step: int) -> bool:
        """Whether to end after this step; of several processes, all get the same answer. Call once a step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked.is_set()

    def check(self) -> None:
        """Between steps: raises `Preempted` if the run was asked to end. Several processes wait for the step's end."""
        if not self._several and self._asked.is_set():
            raise Preempted
