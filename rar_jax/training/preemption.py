"""How a run is asked to end early by a signal."""

import logging
import signal
import threading

import jax
from jax.experimental import multihost_utils

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(Exception):  # noqa: N818 (nothing is wrong)
    """Raised between steps, or within an evaluation, when the run was asked to end. The last step can be saved."""


class Preemption:
    """A context manager within which SIGTERM and SIGINT do not end the process, but ask the run to end.

    A second SIGINT ends the process at once. Several processes agree through JAX's preemption service, so that all of
    them end at the same step, whichever of them got the signal. JAX then needs SIGTERM for itself: this class handles
    SIGINT only, and passes it on as SIGTERM.
    """

    def __init__(self):
        self._several = jax.process_count() > 1
        self._asked = threading.Event()
        self._asks = 0
        self._agreed = False
        self._handlers = {}

    def __enter__(self):
        # Only the main thread can set handlers. In another thread, as in a notebook, signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT,) if self._several else _SIGNALS
            self._handlers = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number, _):
        # The loop logs this: a log line written here could interrupt another one that is half written.
        self._asked.set()
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            if self._several:
                signal.raise_signal(signal.SIGTERM)

    def asked(self) -> bool:
        """Returns whether the run was asked to end. All processes must call it equally often, and agree."""
        if self._several and not self._agreed:
            # JAX's count must start at 1 in each process, also in a run that resumes at a later step.
            self._asks += 1
            self._agreed = multihost_utils.reached_preemption_sync_point(self._asks)
        return self._agreed or (not self._several and self._asked.is_set())

    def check(self) -> None:
        """Raises `Preempted` if the run was asked to end. All processes must call this equally often."""
        if self.asked():
            raise Preempted

    def check_alone(self) -> None:
        """Does what `check` does if there is only one process. For work that only the first process does."""
        if not self._several:
            self.check()
