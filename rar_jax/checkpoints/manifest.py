"""Digests of a checkpoint's files, so that one that was damaged later is not restored.

Orbax restores a flipped bit silently, as a wrong value.
"""

import concurrent.futures
import hashlib
import json

from etils import epath

from rar_jax.errors import UserError
from rar_jax.files import write_atomically

FILE = "manifest.json"

_CHUNK = 2**24
_THREADS = 4


def _digest(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _files(folder: epath.Path) -> list[epath.Path]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found += _files(path)
        elif path.name != FILE and not path.name.endswith(".partial"):
            found.append(path)
    return found


def _digests(folder: epath.Path, part: int = 0, parts: int = 1) -> dict[str, str]:
    files = _files(folder)[part::parts]
    names = [str(path.relative_to(folder)) for path in files]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(names, threads.map(_digest, files), strict=True))


def write_manifest(folder: epath.Path) -> None:
    """Writes the digests of all files below a folder beside them."""
    write_atomically(folder / FILE, json.dumps(_digests(folder), indent=1))


def verify(folder: epath.Path, part: int = 0, parts: int = 1) -> bool:
    """Compares a folder's files with its manifest.

    Args:
      folder: of a checkpoint.
      part, parts: of several processes, each reads its share; by default all is read.

    Returns:
      Whether there is a manifest to compare with.

    Raises:
      UserError: a file is missing or not as it was written; the first such is named.
    """
    manifest = folder / FILE
    if not manifest.exists():
        return False
    try:
        written = dict(json.loads(manifest.read_text()))
    except (ValueError, TypeError):
        raise UserError(f"{manifest} is damaged") from None
    for path in written:
        if not (folder / path).exists():
            raise UserError(f"{folder / path} is missing")
    for name, digest in _digests(folder, part, parts).items():
        if written.get(name, digest) != digest:
            raise UserError(f"{folder / name} is damaged")
    return True
