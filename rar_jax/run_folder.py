"""What every command knows of a run's folder: its config.json, and that it must be a folder."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Sequence
from typing import Any, TextIO

from etils import epath

from rar_jax.config import Config, flat_fields, from_config_dict
from rar_jax.errors import UserError
from rar_jax.files import write_atomically

CONFIG_FILE = "config.json"
# Fields that older versions stored, by section, and that no longer exist.
_REMOVED = {"checkpoint": ("best_mode",)}
_LOCK_FILE = "run.lock"
# Of differences between runs that are named.
_SHOWN_FIELDS = 8


def write_config(folder: epath.PathLike, config: Config) -> None:
    """Writes the config of a run into its folder, which is made if need be."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"kind": "rar"} | dataclasses.asdict(config)
    write_atomically(folder / CONFIG_FILE, json.dumps(fields, indent=2) + "\n")


def _read_fields(folder: epath.PathLike) -> dict[str, Any]:
    file = epath.Path(folder) / CONFIG_FILE
    if not file.exists():
        raise UserError(f"no run in {str(folder)!r}: it has no {CONFIG_FILE}")
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: {error}") from None


def read_kind(folder: epath.PathLike) -> str:
    """What a folder holds the weights of: rar, whose run it is, or another kind, where it was converted.

    Raises:
      UserError: it has no config.json, or a garbled one.
    """
    return _read_fields(folder).get("kind", "rar")


def read_config(folder: epath.PathLike) -> Config:
    """The config that a run's folder was begun with.

    Raises:
      UserError: the folder has none, or it is not one that this version understands.
    """
    fields = _read_fields(folder)
    fields.pop("kind", None)
    for section, names in _REMOVED.items():
        if isinstance(fields.get(section), dict):
            fields[section] = {name: value for name, value in fields[section].items() if name not in names}
    # Fields that the schema did not have then; their defaults are what was done without them.
    for section, default in dataclasses.asdict(Config()).items():
        if isinstance(default, dict) and isinstance(fields.get(section), dict):
            fields[section] = default | fields[section]
        else:
            fields.setdefault(section, default)
    try:
        return from_config_dict(fields)
    except UserError as error:
        raise UserError(f"{epath.Path(folder) / CONFIG_FILE}: {error}") from None


def run_names(folders: Sequence[epath.PathLike]) -> list[str]:
    """What tells runs apart: each one's folder, and the fields of its config that are not the same in all.

    Raises:
      UserError: one has no config, or is named twice.
    """
    if len(set(map(str, folders))) < len(folders):
        raise UserError(f"runs {', '.join(map(str, folders))}: one is named twice")
    configs = [flat_fields(read_config(folder)) for folder in folders]
    different = [path for path in configs[0] if len({config[path] for config in configs}) > 1 and path != "name"]
    names = []
    for folder, config in zip(folders, configs, strict=True):
        said = [f"{path}={config[path]!r}" for path in different[:_SHOWN_FIELDS]]
        more = len(different) - len(said)
        names.append(f"{folder}: {', '.join(said) or 'the same config'}" + (f" and {more} more" if more else ""))
    return names


def check_folder(flag: str, folder: epath.PathLike) -> None:
    """Raises a `UserError` that names the flag if the folder, or one above it, is a file."""
    folder = epath.Path(folder)
    if "://" in str(folder):
        # There are no folders there, and not all may list the buckets.
        return
    for ancestor in (folder, *folder.parents):
        if ancestor.exists() and not ancestor.is_dir():
            raise UserError(f"--{flag}={folder}: {ancestor} is a file, not a folder")


def lock(folder: epath.PathLike, name: str = _LOCK_FILE, work: str = "trains") -> TextIO | None:
    """Makes sure that no other process of this machine does the same work in a folder, which is made if need be.

    Args:
      folder: to work in.
      name: of the file in it that is locked.
      work: what the other one would be doing.

    Returns:
      A file that holds the lock until it is closed, at the latest when the process ends, however it ends. None for
      remote folders, such as gs://, where there are no locks.

    Raises:
      UserError: another process holds it.
    """
    folder = epath.Path(folder)
    if "://" in str(folder):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / name, "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise UserError(f"{folder}: process {holder} {work} there; stop it, or choose another folder") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    # For other machines, where the folder is on a network file system.
    os.fsync(file.fileno())
    return file


def is_locked_by(folder: epath.PathLike, process: int) -> bool:
    """Whether the folder is the one in which a process, perhaps of another machine, holds the lock; remote ones are."""
    file = epath.Path(folder) / _LOCK_FILE
    return "://" in str(folder) or (file.exists() and file.read_text() == str(process))
