"""What all configs have in common: how they are built from dictionaries, checked, and compared with a stored one.

A config is a frozen dataclass of fields and sections, which `fields.setting` defines. It has a class attribute and
these methods:

- `kind`: the kind of weights that its runs train, as stored in config.json.
- `may_change(path)`: returns whether a field may change when a run resumes, because it affects neither its losses nor
  its weights.
- `changes_state(path, old, new)`: returns whether a new value of a field changes the arrays of the state.
- `rules()`: yields the rules between fields: whether each holds, and the message if it does not.
- `run_rules()`: yields further rules, for starting and resuming a run.

`config.Config` is the one of a RAR, and `tokenizer_config.TokenizerConfig` that of a tokenizer.
"""

import dataclasses
import difflib
import pathlib
import runpy
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import flax.traverse_util
import ml_collections

from rar_jax.errors import UserError
from rar_jax.fields import check_fields

_Config = TypeVar("_Config")


def config_beside(config_file: str, name: str) -> ml_collections.ConfigDict:
    """Returns what another config file returns, for a file that changes a few of its fields.

    Args:
      config_file: `__file__` of the calling config file.
      name: path of the config file to start from, relative to the calling file's folder, such as "digits.py".
    """
    return runpy.run_path(str(pathlib.Path(config_file).parent / name))["get_config"]()


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
    """Returns the mutable form, for config files and overrides. Unknown fields cannot be added to it."""
    return ml_collections.ConfigDict(dataclasses.asdict(config)).lock()


def build_config(fields: ml_collections.ConfigDict | dict[str, Any], schema: type[_Config]) -> _Config:
    """Returns the frozen form, checked.

    Args:
      fields: the values, by section and field.
      schema: the class of the config.

    Raises:
      UserError: a field is unknown, missing, of the wrong type or out of range, or it contradicts another field. The
        message names the field, its value and what to do.
    """
    if isinstance(fields, ml_collections.ConfigDict):
        fields = fields.to_dict()
    config = build_section(schema, fields, "")
    check(config)
    return config


def check(config: Any) -> None:
    """Checks everything that does not depend on data or devices.

    Raises:
      UserError: see `build_config`.
    """
    check_fields(config, "config.")
    _check_rules(config.rules())


def check_run(config: Any) -> None:
    """Checks what a run needs, and what the stored config of an older run need not meet.

    Raises:
      UserError: see `build_config`.
    """
    _check_rules(config.run_rules())


def _check_rules(rules: Iterator[tuple[bool, str]]) -> None:
    for holds, message in rules:
        if not holds:
            raise UserError(message)


def field_paths(schema: type, prefix: str = "") -> Iterator[str]:
    """Yields the dotted name of every field and section."""
    for field in dataclasses.fields(schema):
        yield prefix + field.name
        if dataclasses.is_dataclass(field.type):
            yield from field_paths(field.type, f"{prefix}{field.name}.")


def unknown_field(path: str, *schemas: type) -> str:
    """Returns the message for a field that none of some configs has, with the nearest names."""
    leaf = path.rsplit(".", 1)[-1]
    paths = list(dict.fromkeys(each for schema in schemas for each in field_paths(schema)))
    near = difflib.get_close_matches(path, paths, n=3)
    near += [p for p in paths if difflib.get_close_matches(leaf, [p.rsplit(".", 1)[-1]], n=1) and p not in near]
    where = " and ".join(f"{schema.__module__.replace('.', '/')}.py" for schema in schemas)
    return f"config has no field {path!r}; " + (f"nearest: {', '.join(near[:3])}" if near else f"see {where}")


def build_section(section: type, values: Any, prefix: str, schema: type | None = None) -> Any:
    """Makes a section of a config from a dictionary of exactly its fields, each of its type.

    Args:
      section: the class of the section.
      values: the fields.
      prefix: the name of the section in the config, with a dot at its end; empty for the whole config.
      schema: the class of the config, where the nearest names of a misspelt field are looked up. By default `section`.

    Raises:
      UserError: a field is unknown, missing or of another type.
    """
    schema = schema or section
    if not isinstance(values, dict):
        raise UserError(f"config.{prefix.rstrip('.')}={values!r} must be a section of fields")
    names = {field.name for field in dataclasses.fields(section)}
    for name in values:
        if name not in names:
            raise UserError(unknown_field(prefix + name, schema))
    built = {}
    for field in dataclasses.fields(section):
        path = prefix + field.name
        if field.name not in values:
            where = f"{schema.__module__.replace('.', '/')}.py"
            raise UserError(f"config.{path} is missing: start from a recipe in {where}")
        value = values[field.name]
        if dataclasses.is_dataclass(field.type):
            value = build_section(field.type, value, f"{path}.", schema)
        elif field.type is float and type(value) is int:
            value = float(value)
        elif field.type is tuple and type(value) is list:
            # JSON has no tuples.
            value = tuple(value)
        elif type(value) is not field.type:
            raise UserError(f"config.{path}={value!r} must be of type {field.type.__name__}")
        built[field.name] = value
    return section(**built)


def flat_fields(config: Any) -> dict[str, Any]:
    """Returns every field by its dotted name."""
    return flax.traverse_util.flatten_dict(dataclasses.asdict(config), sep=".")


def allowed_changes(config: Any, given: Sequence[str]) -> list[str]:
    """Returns the fields of --allow_config_change, which may be given with or without `config.` before their names.

    Raises:
      UserError: the config has no such field, or it is a section.
    """
    known, names = flat_fields(config), [path.removeprefix("config.") for path in given]
    for path in names:
        if path not in known:
            section = path in field_paths(type(config))
            reason = "it is a section; name its fields one by one" if section else unknown_field(path, type(config))
            raise UserError(f"--allow_config_change={path}: {reason}")
    return names


def check_same_run(config: _Config, saved: _Config, allowed: Sequence[str] = ()) -> list[str]:
    """Compares the config of a resumed run with the one stored in its folder.

    Args:
      config: the config of the resumed run.
      saved: the stored config, of the same class.
      allowed: fields that may differ although they change what is trained. Fields that change the arrays of
        the state may not, because the checkpoints could not be restored.

    Returns:
      The differences that are allowed, each with both values.

    Raises:
      UserError: a field that changes what is trained differs. Every such field is named with both values.
    """
    ours, theirs = flat_fields(config), flat_fields(saved)
    different = [path for path in ours if ours[path] != theirs[path]]
    shapes = [path for path in different if saved.changes_state(path, theirs[path], ours[path])]
    refused = [path for path in different if not saved.may_change(path) and (path not in allowed or path in shapes)]
    differences = {path: f"config.{path}={theirs[path]!r}, not {ours[path]!r}" for path in different}
    if refused:
        override = " ".join(f"--allow_config_change={path}" for path in refused)
        raise UserError(
            "this folder's run has "
            + ", ".join(differences[path] for path in refused)
            + ": train in another --workdir, or use the stored values"
            + ("" if shapes else f", or override this check with {override}")
        )
    return list(differences.values())
