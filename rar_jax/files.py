"""Files that are there as a whole or not at all."""

import os
import socket
import uuid

from etils import epath


def aside(path: epath.Path) -> epath.Path:
    """Where a file is written before it is moved into place: a name that no other process, of any machine, takes."""
    return path.parent / f"{path.name}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"


def write_atomically(path: epath.PathLike, text: str) -> None:
    """Writes a file aside and moves it into place, so that whoever dies meanwhile leaves the old one."""
    path = epath.Path(path)
    partial = aside(path)
    partial.write_text(text)
    partial.replace(path)


def cache_folder(name: str) -> epath.Path:
    """Where what can be made again is kept between runs: under XDG_CACHE_HOME, or ~/.cache."""
    return epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rar_jax" / name
