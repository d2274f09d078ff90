"""Checksums of a checkpoint's files, which detect damage that happens after the checkpoint was written.

Orbax restores a flipped bit silently, as a wrong value.
"""

import concurrent.futures
import hashlib
import json
import threading
from collections.abc import Sequence

from etils import epath

from rar_jax.errors import UserError
from rar_jax.files import file_size, write_atomically

FILE = "manifest.json"

_CHUNK = 2**24
_THREADS = 4
_IDENTITY_DIGITS = 12


class DamagedError(UserError):
    """A checkpoint is proven to be damaged: a file is missing, or its checksum is not the one that was recorded."""


def _digest(path: epath.Path, given_up: threading.Event | None = None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if given_up is not None and given_up.is_set():
                raise TimeoutError("there was no time for the checksums")
            digest.update(chunk)
    return digest.hexdigest()


def _names(folder: epath.Path, below: str = "") -> list[str]:
    """Returns the names of all files below a checkpoint's folder, relative to it."""
    found = []
    for path in sorted((folder / below).iterdir()):
        name = f"{below}/{path.name}" if below else path.name
        if path.is_dir():
            found += _names(folder, name)
        elif path.name != FILE and not path.name.endswith(".partial"):
            found.append(name)
    return found


def _digests(folder: epath.Path, names: Sequence[str], given_up: threading.Event | None = None) -> dict[str, str]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(names, threads.map(lambda name: _digest(folder / name, given_up), names), strict=True))


def _is_missing(path: epath.Path) -> bool:
    """Returns whether there is no such file. Unlike `exists`, raises what else keeps the file from being seen."""
    try:
        file_size(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    return False


def _recorded(folder: epath.Path) -> dict[str, str] | None:
    """Returns the digests in a checkpoint's manifest, or None if it has no manifest. Raises `DamagedError`."""
    manifest = folder / FILE
    if _is_missing(manifest):
        return None
    text = manifest.read_bytes()
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        raise DamagedError(f"checkpoint {folder} cannot be read: {manifest} is damaged") from None


def write_manifest(folder: epath.Path, given_up: threading.Event | None = None) -> None:
    """Writes the digests of all files below a checkpoint's folder to `manifest.json` in that folder.

    Args:
      folder: the checkpoint's folder.
      given_up: set by another thread to end this early, because Python does not exit before the threads that read the
        files have ended.

    Raises:
      OSError: a file cannot be read or written. It is a TimeoutError if `given_up` was set.
    """
    write_atomically(folder / FILE, json.dumps(_digests(folder, _names(folder), given_up), indent=1))


def verify(folder: epath.Path, part: int = 0, parts: int = 1) -> bool:
    """Compares a checkpoint's files with its manifest.

    Args:
      folder: the checkpoint's folder.
      part: which share of the files this process reads, from 0.
      parts: number of processes that share the files. Each process looks for missing files among all of them.

    Returns:
      Whether there is a manifest to compare with.

    Raises:
      DamagedError: a file is missing or has another checksum; the message names the first such file.
      OSError: a file cannot be read, which does not prove damage.
    """
    recorded = _recorded(folder)
    if recorded is None:
        return False
    for name in recorded:
        if _is_missing(folder / name):
            raise DamagedError(f"checkpoint {folder} cannot be read: {folder / name} is missing")
    for name, digest in _digests(folder, sorted(recorded)[part::parts]).items():
        if recorded[name] != digest:
            raise DamagedError(f"checkpoint {folder} cannot be read: {folder / name} is damaged")
    return True


def checkpoint_identity(folder: epath.Path) -> str:
    """Returns 12 hexadecimal digits that identify a checkpoint by the SHA-256 digests of its files.

    The digests come from the manifest; without a manifest all files are read.

    Raises:
      DamagedError: the manifest is not readable JSON.
    """
    digests = _recorded(folder)
    if digests is None:
        digests = _digests(folder, _names(folder))
    lines = "".join(f"{digest} {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:_IDENTITY_DIGITS]


def file_identity(path: epath.Path) -> str:
    """Returns the first 12 hexadecimal digits of the SHA-256 digest of a file's bytes."""
    return _digest(path)[:_IDENTITY_DIGITS]
