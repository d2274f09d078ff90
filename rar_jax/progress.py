"""Shows the progress of long work: a bar on a terminal, or a line every few seconds in a log."""

import logging
import sys
import time

import tqdm

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts units of work and shows how many are done, the rate and the time left."""

    def __init__(self, label: str, total: int, done: int = 0, unit: str = "step"):
        """Shows the bar, if there is a terminal.

        Args:
          label: name of the work.
          total: number of units in all.
          done: number of units that were done earlier. They do not count for the rate.
          unit: name of a unit.
        """
        self._label, self._total, self._unit = label, total, unit
        self._initial = self._done = done
        self._began = self._last_line = time.monotonic()
        # If several processes share a terminal, only those that log show a bar.
        terminal = sys.stderr.isatty() and _log.isEnabledFor(logging.INFO)
        self._bar = tqdm.tqdm(desc=label, total=total, initial=done, unit=unit) if terminal else None

    def update(self, units: int = 1, note: str = "") -> None:
        """Counts `units` more units as done, and shows `note` beside the progress."""
        self._done += units
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last_line = now
            rate = (self._done - self._initial) / max(now - self._began, 1e-9)
            # It is possible that nothing is done yet, for example while other processes work.
            left = tqdm.tqdm.format_interval((self._total - self._done) / rate) if rate else "unknown time"
            _log.info(
                "%s %d/%d, %.3g %s/s, %s left%s",
                self._label, self._done, self._total, rate, self._unit, left, f", {note}" if note else "",
            )  # fmt: skip

    def close(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()
