"""Writes files atomically or line by line, and refuses to resume work in a folder with other settings."""

import concurrent.futures
import contextlib
import errno
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from typing import IO, Any

from etils import epath

from rar_jax.errors import UserError

# The disk or the user's share of it is full, or the file may not be larger.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = logging.getLogger(__name__)


def printable(text: str) -> str:
    """Returns a text with names of files, which may hold any bytes, as one line of UTF-8 without tabs."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\t", "\\t").replace("\n", "\\n")


def aside(path: epath.Path) -> epath.Path:
    """Returns a name to write a file under before it is moved into place; no other process or machine uses it."""
    return path.parent / f"{path.name}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"


@contextlib.contextmanager
def written_aside(path: epath.Path) -> Iterator[epath.Path]:
    """Gives a name to write a file under, which is moved into place at the end, so that a kill leaves the old one.

    If writing fails, for example on a full disk, the file aside is deleted.
    """
    partial = aside(path)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[IO[bytes]]:
    """Opens a file to write, which replaces the old one when it is complete; see `written_aside`."""
    with written_aside(epath.Path(path)) as partial, partial.open("wb") as file:
        yield file


def write_atomically(path: epath.PathLike, text: str) -> None:
    """Writes a text file that replaces the old one only when it is complete."""
    with replacing(path) as file:
        file.write(text.encode())


def create_atomically(path: epath.PathLike, text: str) -> None:
    """Writes a text file atomically unless it exists: the first of several processes wins.

    On file systems without hard links, such as gs://, the last one wins.
    """
    path = epath.Path(path)
    if path.exists():
        return
    partial = aside(path)
    try:
        partial.write_text(text)
        try:
            os.link(partial, path)
        except FileExistsError:
            return
        except OSError:
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def file_size(path: epath.PathLike) -> int:
    """Returns the size of a file in bytes.

    The `stat` of epath also looks up the name of the file's owner, and fails in containers that do not know the name.
    """
    path = epath.Path(path)
    return path.stat().length if "://" in str(path) else os.stat(path).st_size


def read_json_lines(path: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the JSON lines of a file, or none if there is no file; a last line cut short by a crash is left out.

    Raises:
      UserError: another line is damaged.
      OSError: the file cannot be read.
    """
    # Without asking first whether the file exists: what cannot be seen for a moment would count as missing.
    try:
        lines = epath.Path(path).read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is damaged: repair or remove the line") from None
    return entries


class JsonLinesFile:
    """A file of JSON lines that grows. On gs://, where files cannot grow, a thread writes the whole file each time.

    Lines that could not be written, for example because the disk is full, are written by the next call that can.

    Attributes:
      path: the file.
    """

    def __init__(self, path: epath.Path, entries: list[dict[str, Any]]):
        """Replaces the file by one with these lines."""
        self.path, self._text = path, "".join(json.dumps(entry) + "\n" for entry in entries)
        write_atomically(path, self._text)
        self._written = self._text
        self._file = self._thread = None
        if "://" in str(path):
            self._thread = concurrent.futures.ThreadPoolExecutor(1)
            # The last write that was not waited for.
            self._last = None
        else:
            # Without Python's buffer, which would drop lines after an error.
            self._file, self._left = open(path, "ab", buffering=0), b""

    def add(self, values: Mapping[str, Any]) -> None:
        """Adds a line.

        Raises:
          OSError: the line cannot be written yet.
          Exception: on gs://, an earlier line could not be. Buckets raise many kinds of errors.
        """
        line = json.dumps(values) + "\n"
        if self._file is not None:
            self._left += line.encode()
            self.flush()
            return
        self._text += line
        last, self._last = self._last, self._thread.submit(self._write)
        if last is not None and last.done():
            last.result()

    def _write(self) -> None:
        """Writes all lines so far. If lines arrive faster than they are written, several new ones share a write."""
        text = self._text
        if text != self._written:
            write_atomically(self.path, text)
            self._written = text

    def flush(self) -> None:
        """Waits until all lines are written. Raises as `add` does if they cannot be."""
        if self._thread is not None:
            self._last = None
            self._thread.submit(self._write).result()
        else:
            while self._left:
                self._left = self._left[self._file.write(self._left) :]

    def close(self) -> None:
        """Flushes and closes the file. Raises as `add` does if the last lines cannot be written."""
        try:
            self.flush()
        finally:
            if self._file is not None:
                self._file.close()
            else:
                self._thread.shutdown()


@contextlib.contextmanager
def warn_of_write_errors(path: epath.PathLike) -> Iterator[None]:
    """Turns an error of writing a file, such as that of a full disk, into a warning.

    Args:
      path: the file that the block writes, or the folder of its files.
    """
    try:
        yield
    except Exception as error:
        # Buckets raise many kinds of errors.
        if not isinstance(error, OSError) and "://" not in str(path):
            raise
        _log.warning("%s: %s; training is not affected", path, error)


def hold_to_plan(flag: str, folder: epath.PathLike, earlier: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Checks that the work in a folder is resumed with the plan that started it.

    Args:
      flag: name of the flag that gave the folder.
      folder: the folder, which holds results of the earlier plan.
      earlier: the plan that started the work, as read from JSON.
      plan: all settings that decide the results now, as they would be read from JSON.

    Raises:
      UserError: the plans differ. The message names every field that differs.
    """
    if different := [name for name in plan | earlier if plan.get(name) != earlier.get(name)]:
        raise UserError(
            f"--{flag}={folder} was started with "
            + ", ".join(f"{name}={earlier.get(name)!r}, not {plan.get(name)!r}" for name in different)
            + ": use the same settings, or choose another folder"
        )


def begin_or_resume(flag: str, folder: epath.Path, name: str, plan: Mapping[str, Any]) -> None:
    """Starts work in a folder by writing its plan to a file, or checks that the work there was started with this plan.

    Args:
      flag: name of the flag that gave the folder.
      folder: the folder, which is made if it does not exist.
      name: name of the file with the plan.
      plan: all settings that decide the results; JSON values.

    Raises:
      UserError: the plans differ, or a new folder holds other files.
    """
    if (folder / name).exists():
        hold_to_plan(flag, folder, json.loads((folder / name).read_text()), plan)
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"--{flag}={folder} holds other files: choose another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, json.dumps(plan) + "\n")


def cache_folder(name: str) -> epath.Path:
    """Returns the folder that keeps files that can be recomputed: below XDG_CACHE_HOME, or ~/.cache."""
    return epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rar_jax" / name
