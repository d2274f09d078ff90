"""Silences what Orbax, TensorStore and asyncio print about a save that fails, while a save is in flight."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable

import absl.logging


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or "/orbax/" not in record.pathname


def _not_of_a_task(record: logging.LogRecord) -> bool:
    # Orbax abandons the other tasks after one of them fails.
    message = record.getMessage()
    return "exception was never retrieved" not in message and "was destroyed but it is pending" not in message


def silence_saves() -> Callable[[], None]:
    """Suppresses the tracebacks, hundreds on a full disk, that a failing save prints from background threads.

    The caller reports the failure in one line instead.

    Returns:
      A function that ends the silence: it restores all filters and hooks.
    """
    orbax, asyncio = absl.logging.get_absl_logger(), logging.getLogger("asyncio")
    hook = sys.unraisablehook

    def hook_without_closed_loops(error):
        # TensorStore ends work that Orbax no longer waits for.
        if str(error.exc_value) != "Event loop is closed":
            hook(error)

    orbax.addFilter(_not_of_orbax)
    asyncio.addFilter(_not_of_a_task)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    # Not `warnings.catch_warnings`, which would also undo what other threads change meanwhile.
    ignored = warnings.filters[0]
    sys.unraisablehook = hook_without_closed_loops

    def end() -> None:
        orbax.removeFilter(_not_of_orbax)
        asyncio.removeFilter(_not_of_a_task)
        with contextlib.suppress(ValueError):
            warnings.filters.remove(ignored)
        sys.unraisablehook = hook

    return end
