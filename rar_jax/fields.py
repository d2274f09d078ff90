"""Defines and checks the fields of config sections: each has a default, a meaning and limits."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rar_jax.errors import UserError

# The limits of a number, each with its test and its wording in messages.
_LIMITS = {
    "at_least": (lambda value, limit: value >= limit, "at least {}"),
    "above": (lambda value, limit: value > limit, "above {}"),
    "at_most": (lambda value, limit: value <= limit, "at most {}"),
    "below": (lambda value, limit: value < limit, "below {}"),
}


def setting(default: Any, meaning: str, *, one_of: Sequence[str] | None = None, **limits: float) -> Any:
    """Returns a dataclass field with a default, a meaning and limits, which `check_fields` checks.

    Args:
      default: the value of the paper's recipe, where the paper has one.
      meaning: what the field sets, in a sentence or two.
      one_of: the values that a string may have.
      limits: `at_least`, `above`, `at_most` or `below`, for a number.
    """
    known = {name: limits.pop(name) for name in _LIMITS if name in limits}
    if limits:
        raise TypeError(f"setting() has no limits {sorted(limits)}")
    return dataclasses.field(default=default, metadata={"meaning": meaning, "one_of": one_of, "limits": known})


def check_fields(section: Any, prefix: str = "") -> None:
    """Checks each field of a section, and of the sections within it, against its limits.

    Args:
      section: a dataclass with fields made by `setting`.
      prefix: put before the names of fields in messages, such as "config.model.".

    Raises:
      UserError: a value is outside its limits. The message names the field, the value and the limits.
    """
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{name}.")
            continue
        choices, limits = field.metadata.get("one_of"), field.metadata.get("limits", {})
        if choices and value not in choices:
            raise UserError(f"{name}={value!r} must be one of {', '.join(choices)}")
        # A comparison with NaN is false, so NaN is refused.
        if not all(_LIMITS[kind][0](value, limit) for kind, limit in limits.items()):
            allowed = " and ".join(_LIMITS[kind][1].format(limit) for kind, limit in limits.items())
            raise UserError(f"{name}={value} must be {allowed}")
