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
    that all of them end at the same place, whichever got the signal; a Python handler for SIGTERM would silence it, and
    SIGINT is passed on to it as SIGTERM.
    """

    def __init__(self):
        self._several = jax.process_count() > 1
        self._asked = threading.Event()
        self._asks = 0
        self._agreed = False
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

    def asked(self) -> bool:
        """Whether to end now. Of several processes all must ask equally often, and get the same answer each time."""
        if self._several and not self._agreed:
            # What JAX counts must begin at 1 in each process, also where a run goes on from a later step.
            self._asks += 1
            self._agreed = multihost_utils.reached_preemption_sync_point(self._asks)
        return self._agreed or (not self._several and self._asked.is_set())

    def check(self) -> None:
        """Raises `Preempted` if the run was asked to end; for several processes as `asked`."""
        if self.asked():
            raise Preempted

    def check_alone(self) -> None:
        """As `check`, for what only the first process does; of several, it goes on until all are asked again."""
        if not self._several:
            self.check()
