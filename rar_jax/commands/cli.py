"""Runs commands: flags, signals, exit codes, and errors in one line.

Exit codes: 0 if the work is complete, 75 if it was preempted and saved (start it again), 2 for a user's mistake, 130 if
SIGINT stopped it, 143 if SIGTERM did, and 1 for anything else.
"""

import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import absl.logging
import jax
from absl import app, flags

from rar_jax.config import Config
from rar_jax.errors import UserError, mistake_in_file
from rar_jax.files import NO_ROOM, cache_folder
from rar_jax.schema import field_paths, unknown_field

FAILURE = 1
USER_MISTAKE = 2
# EX_TEMPFAIL of sysexits.h.
PREEMPTED = 75


# A process that one of these stops exits with 128 plus its number, as in a shell.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# The path is missing or taken, access is denied, or it is a file instead of a folder or a folder instead of a file.
_UNUSABLE_PATHS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


class _Stopped(SystemExit):
    """Raised when a signal stops the command. Its code is 128 plus the number of the signal."""


def fail(message: object, code: int = USER_MISTAKE) -> NoReturn:
    """Ends the program with one line on stderr that states the reason."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def declare_schema(*schemas: type) -> None:
    """Declares the classes of config that the command's flag --config reads. By default it is `config.Config`."""
    flags.FLAGS["config"].schemas = schemas


def declare_argument(holder: flags.FlagHolder) -> flags.FlagHolder:
    """Lets the command take the value of this flag without its name, as its only argument. Returns the flag."""
    flags.FLAGS[holder.name].is_argument = True
    return holder


def _check_overrides(argv: Sequence[str]) -> None:
    """Refuses `--config.` overrides of fields that the command's config does not have, with the nearest names."""
    schemas = getattr(flags.FLAGS["config"], "schemas", (Config,)) if "config" in flags.FLAGS else (Config,)
    known = {path for schema in schemas for path in field_paths(schema)}
    for argument in argv[1:]:
        if argument == "--":
            break
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match.group(1) not in known:
            fail(unknown_field(match.group(1), *schemas))


def _config_file(argv: Sequence[str]) -> str | None:
    """Returns the path that --config names, or None without the flag."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument):
            # What follows a colon is an argument of the file's get_config.
            return (following if match[1] is None else match[1]).split(":")[0]
    return None


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags. A mistake in them or in the config file ends the program with one line."""
    _check_overrides(argv)
    path = _config_file(argv) if "config" in flags.FLAGS else None
    if path is not None and not os.path.isfile(path):
        fail(f"--config={path}: there is no such file")
    try:
        try:
            rest = flags.FLAGS(argv)
        finally:
            # ml_collections keeps an OSError of the file until the config is used, and says first that an override of
            # its fields is unknown.
            if "config" in flags.FLAGS:
                getattr(flags.FLAGS["config"].value, "to_dict", None)
    # A config file is Python code of the user, which can raise any exception.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        message = f"{lines[0]} {lines[-1]}" if len(lines) > 1 else lines[0]
        if path is not None and not isinstance(error, flags.Error):
            message = f"--config={path}: {message}"
        fail((path and mistake_in_file(path, error)) or message)
    for name in flags.FLAGS:
        if len(rest) > 1 and flags.FLAGS[name].value is None and getattr(flags.FLAGS[name], "is_argument", False):
            flags.FLAGS[name].value = rest.pop(1)
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}: options are given as --name=value")
    return rest


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent compilation cache, so that a command that starts again need not compile its programs.

    The cache is in the user's cache folder, or in the folder that JAX_COMPILATION_CACHE_DIR names. JAX by default keeps
    programs that took at least a second to compile; here it is a tenth, because a start compiles many small ones.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def set_deterministic(wanted: bool) -> None:
    """Makes GPUs repeat their results bit for bit, if that is wanted. Call it before JAX starts its backend.

    XLA reads its flags at that time.
    """
    if wanted:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"


def read_numbers(holder: flags.FlagHolder[list[str]], kind: type, example: str) -> list[Any]:
    """Returns the numbers of a list flag, of type `kind`. Raises a `UserError` with an example if one is not."""
    try:
        return [kind(number) for number in holder.value]
    except ValueError:
        raise UserError(f"--{holder.name}={','.join(holder.value)} must be numbers, such as {example}") from None


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with one line if the block raises a `UserError`, or finds an unusable path or a full disk.

    The exit code is 1 for a full disk, else 2.
    """
    try:
        yield
    except (UserError, *_UNUSABLE_PATHS) as error:
        fail(error)
    except ImportError as error:
        # What fsspec raises for a path on gs://.
        if "gcsfs" not in str(error):
            raise
        fail("gs:// needs the package gcsfs: install it with launch/install.sh tpu or pip install gcsfs")
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        fail(f"{error}; once there is room, start the same command again", FAILURE)


def _handle_signals(handler: Any) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)


def _stop(number: int, _: object) -> NoReturn:
    # The exception lets the command remove its temporary files. A second signal ends the process at once.
    _handle_signals(signal.SIG_DFL)
    raise _Stopped(128 + number)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command: parses its flags, calls it, and turns what a user can mend into one line.

    Log lines of this package go to stderr, and of other libraries only their warnings. SIGINT and SIGTERM end the
    command with one line, except in training, which saves first (`training.preemption`).

    Args:
      main: the command's function of the arguments that are not flags. Its module's docstring and flags are what
        --help shows.
    """
    absl.logging.set_verbosity(absl.logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("rar_jax")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    _handle_signals(_stop)
    sys.modules["__main__"].__doc__, sys.argv[0] = sys.modules[main.__module__].__doc__, main.__module__

    def guarded(argv):
        with user_errors():
            main(argv)

    try:
        app.run(guarded, flags_parser=_parse_flags)
    except _Stopped as stopped:
        # Dropping the frames of the command closes its progress bar before the line below is printed.
        code = stopped.with_traceback(None).code
    finally:
        # While Python shuts down nothing would catch what a handler raises.
        _handle_signals(signal.SIG_DFL)
    fail(f"stopped by {signal.Signals(code - 128).name}", code)
