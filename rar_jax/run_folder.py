"""Reads and writes a run's config.json, and locks a run's folder against a second process."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, TypeVar

import filelock
from etils import epath

from rar_jax.config import Config
from rar_jax.errors import UserError, naming
from rar_jax.files import write_atomically
from rar_jax.schema import build_config, flat_fields

CONFIG_FILE = "config.json"
# Fields that older versions stored and that no longer exist, by section.
_REMOVED = {"checkpoint": ("best_mode",)}
_LOCK_NAME = "run"
# At most this many differing fields appear in a run's label.
_SHOWN_FIELDS = 8

_Config = TypeVar("_Config")

_log = logging.getLogger(__name__)


def write_config(folder: epath.PathLike, config: Any) -> None:
    """Writes a run's config to `config.json` in its folder, which is created if necessary."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG_FILE, config_text(config))


def config_text(config: Any) -> str:
    """Returns the text of a config.json, which `read_config` and `config_from_text` read."""
    return json.dumps({"kind": config.kind} | dataclasses.asdict(config), indent=2) + "\n"


def read_fields(folder: epath.PathLike) -> dict[str, Any]:
    """Returns what the config.json of a run or a conversion stores. Its "kind" is that of the weights.

    Raises:
      UserError: the folder has no config.json, or it is not valid JSON.
    """
    file = epath.Path(folder) / CONFIG_FILE
    if not file.exists():
        raise UserError(f"no run in {str(folder)!r}: it has no {CONFIG_FILE}")
    with naming(str(file)):
        return {"kind": Config.kind} | _parsed(file.read_text())


def _parsed(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None


def read_config(folder: epath.PathLike, schema: type[_Config] = Config) -> _Config:
    """Returns the config that a run was last started with.

    Args:
      folder: the run's folder.
      schema: the class of the config.

    Raises:
      UserError: the folder has no config.json, it is of another kind, or this version does not understand it.
    """
    fields = read_fields(folder)
    kind = fields.pop("kind")
    if kind != schema.kind:
        raise UserError(f"{folder} holds a {kind}, not a {schema.kind}: choose another folder")
    with naming(str(epath.Path(folder) / CONFIG_FILE)):
        return _from_stored(fields, schema)


def config_from_text(text: str) -> Config:
    """Returns the config of a RAR that `config_text` wrote.

    Raises:
      UserError: it is not valid JSON, or this version does not understand it.
    """
    fields = _parsed(text)
    fields.pop("kind", None)
    return _from_stored(fields, Config)


def _from_stored(fields: dict[str, Any], schema: type[_Config]) -> _Config:
    """Returns the config of stored fields, which a version with other fields may have written."""
    for section, names in _REMOVED.items():
        if isinstance(fields.get(section), dict):
            fields[section] = {name: value for name, value in fields[section].items() if name not in names}
    # Fields that are newer than the run get their defaults, which keep the behaviour that the run had without them.
    for section, default in dataclasses.asdict(schema()).items():
        if isinstance(default, dict) and isinstance(fields.get(section), dict):
            fields[section] = default | fields[section]
        else:
            fields.setdefault(section, default)
    return build_config(fields, schema)


def run_names(folders: Sequence[epath.PathLike]) -> list[str]:
    """Returns a label for each run: its folder, and the fields of its config that differ between the runs.

    Raises:
      UserError: a folder has no config, or is named twice.
    """
    if len({epath.Path(folder).resolve() for folder in folders}) < len(folders):
        raise UserError(f"runs {', '.join(map(str, folders))}: one is named twice")
    configs = [flat_fields(read_config(folder)) for folder in folders]
    different = [path for path in configs[0] if len({config[path] for config in configs}) > 1 and path != "name"]
    names = []
    for folder, config in zip(folders, configs, strict=True):
        shown = [f"{path}={config[path]!r}" for path in different[:_SHOWN_FIELDS]]
        more = len(different) - len(shown)
        names.append(f"{folder}: {', '.join(shown) or 'the same config'}" + (f" and {more} more" if more else ""))
    return names


def check_folder(flag: str, folder: epath.PathLike) -> None:
    """Raises a `UserError` that names the flag if a folder to write is below a file or cannot be written."""
    folder = epath.Path(folder)
    if "://" in str(folder):
        # Buckets have no folders, and not every user may list them.
        return
    ancestor = next(path for path in (folder, *folder.parents) if path.exists())
    if not ancestor.is_dir():
        raise UserError(f"--{flag}={folder}: {ancestor} is a file, not a folder")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise UserError(f"--{flag}={folder}: {ancestor} cannot be written: choose another folder")


def lock(folder: epath.PathLike, name: str = _LOCK_NAME, work: str = "trains") -> contextlib.ExitStack:
    """Locks a folder, which is created if necessary, so that no other process does the same work in it.

    Args:
      folder: the folder to work in.
      name: stem of the two files in the folder that hold the lock (NAME.lock) and the holder (NAME.pid).
      work: what the holder does, a verb for the error message.

    Returns:
      The lock, which is held until its `close` is called or the process ends, however it ends. It does nothing on a
      file system without locks, such as gs://.

    Raises:
      UserError: another process holds the lock; the message has its host and process id.
    """
    folder, held = epath.Path(folder), contextlib.ExitStack()
    if "://" in str(folder):
        return held
    folder.mkdir(parents=True, exist_ok=True)
    file_lock = filelock.FileLock(folder / f"{name}.lock", blocking=False, thread_local=False, fallback_to_soft=False)
    # Some versions of filelock empty the file that they lock, so the process id is in another one.
    holder = folder / f"{name}.pid"
    try:
        file_lock.acquire()
    except filelock.Timeout:
        process = holder.read_text() if holder.exists() else "unknown"
        raise UserError(f"{folder}: process {process} {work} there; stop it, or choose another folder") from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        # A file that stands for the lock would stay after a kill.
        _log.warning("%s is on a file system without locks: let no second process work there", folder)
    held.callback(file_lock.release)
    write_atomically(holder, this_process())
    return held


def this_process() -> str:
    """Returns host:process id. In containers of different hosts, processes often have the same id."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_locked_by(folder: epath.PathLike, process: str) -> bool:
    """Returns whether a process, as `this_process` names it, locked this very folder last; True for gs://."""
    holder = epath.Path(folder) / f"{_LOCK_NAME}.pid"
    return "://" in str(folder) or (holder.exists() and holder.read_text() == process)
