"""What the commands share: the config flag with readable errors, and exit codes.

Exit codes: 0 when the work is complete, 75 when it was preempted and what was done is saved (start it again), 2 for a
user's mistake, 130 when stopped by SIGINT and 143 by SIGTERM, 1 for anything else.
"""

import contextlib
import logging
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import absl.logging
from absl import app, flags

from rar_jax.config import field_paths, unknown_field
from rar_jax.errors import UserError

FAILURE = 1
USER_MISTAKE = 2
# EX_TEMPFAIL of sysexits.h.
PREEMPTED = 75


# Of these, 128 and the number is what shells say.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A path that is not there, that may not be used, or that is a file where a folder is needed, or the other way round.
_UNUSABLE_PATHS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


class _Stopped(SystemExit):
    """Raised by a signal wherever the command is; its code is 128 and the number."""


def fail(message: object, code: int = USER_MISTAKE) -> NoReturn:
    """Ends the program with one line that says why."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _check_overrides(argv: Sequence[str]) -> None:
    """Refuses `--config.` overrides of fields that the schema does not have, with the nearest names."""
    known = set(field_paths())
    for argument in argv[1:]:
        if argument == "--":
            break
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match.group(1) not in known:
            fail(unknown_field(match.group(1)))


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags; a mistake ends the program with one line instead of a traceback."""
    _check_overrides(argv)
    try:
        rest = flags.FLAGS(argv)
    # A config file is the user's Python, so that it can raise anything.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        fail(f"{lines[0]} {lines[-1]}" if len(lines) > 1 else lines[0])
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}: options are given as --name=value")
    return rest


def check_options(done: Sequence[str], options: Iterable[tuple[flags.FlagHolder, Collection[str]]]) -> None:
    """Refuses options that say nothing of what is done.

    Args:
      done: the flags that say what is done, the first one above all.
      options: each with the flags that it goes with.

    Raises:
      UserError: naming the first of them that was given.
    """
    for option, of in options:
        if option.present and set(done).isdisjoint(of):
            goes_with = " or ".join(f"--{name}" for name in of)
            raise UserError(f"--{option.name} goes with {goes_with}, not with --{done[0]}: leave it out")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Within it, a `UserError` or an unusable path is a user's mistake: it ends the program with one line."""
    try:
        yield
    except (UserError, *_UNUSABLE_PATHS) as error:
        fail(error)


def share_of_work(index: int | None, count: int | None, default: tuple[int, int] = (0, 1)) -> tuple[int, int]:
    """Which of how many processes this is, by --process_index and --process_count.

    Raises:
      UserError: one is given without the other, or they do not fit.
    """
    if (index is None) != (count is None):
        raise UserError("--process_index and --process_count go together")
    if index is None:
        return default
    if index >= count:
        raise UserError(f"--process_index={index} must be below --process_count={count}")
    return index, count


def _handle_signals(handler: Any) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)


def _stop(number: int, _: object) -> NoReturn:
    # What the command leaves behind is cleared away on the way out; a second signal ends it at once.
    _handle_signals(signal.SIG_DFL)
    raise _Stopped(128 + number)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command, with our log lines on stderr and only the warnings of the libraries.

    SIGINT and SIGTERM end it with one line, but for training, which saves first (`training.preemption`).
    """
    absl.logging.set_verbosity(absl.logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("rar_jax")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    _handle_signals(_stop)

    def guarded(argv):
        with user_errors():
            main(argv)

    try:
        app.run(guarded, flags_parser=_parse_flags)
    except _Stopped as stopped:
        # The frames of the command go, and with them its progress bar: the line below is to come after it.
        code = stopped.with_traceback(None).code
    finally:
        # While Python shuts down nobody would catch what a handler raises.
        _handle_signals(signal.SIG_DFL)
    fail(f"stopped by {signal.Signals(code - 128).name}", code)
