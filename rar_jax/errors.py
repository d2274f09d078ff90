"""The error for mistakes that a user can correct."""

import contextlib
import os
import traceback
from collections.abc import Iterator


class UserError(ValueError):
    """A mistake in flags, a config, data or files. The message names the field, its value, and what to do.

    The commands print it as one line and exit with code 2. Any other exception is a defect and keeps its traceback.
    """


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Puts `what`, such as a field and its value, before the message of a `UserError` that the block raises."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def mistake_in_file(path: str | os.PathLike, error: BaseException) -> str | None:
    """Returns one line for an exception that a config file raised, or None if it did not come from that file.

    ml_collections and absl replace some exceptions by their own, so that the chain of exceptions is searched.
    """
    cause = error
    while (cause.__cause__ or cause.__context__) is not None:
        cause = cause.__cause__ or cause.__context__
    file = os.path.abspath(path)
    lines = [
        line for frame, line in traceback.walk_tb(cause.__traceback__)
        if os.path.abspath(frame.f_code.co_filename) == file
    ]  # fmt: skip
    message = " ".join(str(cause).split())
    if isinstance(cause, SyntaxError) and cause.filename and os.path.abspath(cause.filename) == file:
        lines, message = [cause.lineno], cause.msg
    return f"{path}, line {lines[-1]}: {type(cause).__name__}: {message}" if lines else None
