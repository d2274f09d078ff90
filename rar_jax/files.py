"""Files that are there as a whole or not at all, and folders that are held to what they were begun with."""

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from typing import IO, Any

from etils import epath

from rar_jax.errors import UserError


def aside(path: epath.Path) -> epath.Path:
    """Where a file is written before it is moved into place: a name that no other process, of any machine, takes."""
    return path.parent / f"{path.name}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[IO[bytes]]:
    """A file written aside and moved into place at the end, so that whoever dies meanwhile leaves the old one.

    Where writing fails, on a full disk, nothing stays aside.
    """
    path = epath.Path(path)
    partial = aside(path)
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: epath.PathLike, text: str) -> None:
    """Writes a text, as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


def create_atomically(path: epath.PathLike, text: str) -> None:
    """Writes a text as `write_atomically` does, unless the file is there: of several who come at once the first wins.

    Where there are no hard links, as on gs://, it is the last.
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


def read_json_lines(path: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a file that grew line by line, or none; a last one cut short by a crash is left out."""
    path = epath.Path(path)
    entries = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def hold_to_plan(flag: str, folder: epath.PathLike, begun: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Makes sure that a folder is gone on with as it was begun.

    Args:
      flag: that names the folder.
      folder: with what was made by the plan it was begun with.
      begun: that plan, as read from JSON.
      plan: all that decides what goes into the folder now, as it would be read from JSON.

    Raises:
      UserError: the plans differ; all fields that do are named.
    """
    if different := [name for name in plan | begun if plan.get(name) != begun.get(name)]:
        raise UserError(
            f"--{flag}={folder} was begun with "
            + ", ".join(f"{name}={begun.get(name)!r}, not {plan.get(name)!r}" for name in different)
            + ": go on as it was begun, or choose another folder"
        )


def cache_folder(name: str) -> epath.Path:
    """Where what can be made again is kept between runs: under XDG_CACHE_HOME, or ~/.cache."""
    return epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rar_jax" / name
