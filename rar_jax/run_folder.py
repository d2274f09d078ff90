"""What every command knows of a run's folder: its config.json, and that it must be a folder."""

import dataclasses
import json

from etils import epath

from rar_jax.config import Config, from_config_dict

CONFIG_FILE = "config.json"


def write_config(folder: epath.PathLike, config: Config) -> None:
    """Writes the config of a run into its folder, which is made if need be."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def read_config(folder: epath.PathLike) -> Config:
    """The config that a run's folder was begun with.

    Raises:
      ValueError: the folder has none, or it is not one that this version understands.
    """
    file = epath.Path(folder) / CONFIG_FILE
    if not file.exists():
        raise ValueError(f"no run in {str(folder)!r}: it has no {CONFIG_FILE}")
    try:
        return from_config_dict(json.loads(file.read_text()))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def check_folder(flag: str, folder: epath.PathLike) -> None:
    """Raises a `ValueError` that names the flag if the folder, or one above it, is a file."""
    folder = epath.Path(folder)
    for ancestor in (folder, *folder.parents):
        if ancestor.exists() and not ancestor.is_dir():
            raise ValueError(f"--{flag}={folder}: {ancestor} is a file, not a folder")
