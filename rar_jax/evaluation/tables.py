"""Tables of results as lines of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from rar_jax.evaluation.intervals import Mean


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the lines of a table of rows, name -> value, with a column for each name that any of them has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names] + [[_written(row.get(name, "")) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _written(value: Any) -> str:
    if isinstance(value, Mean):
        interval = "" if value.half_width is None else f" \u00b1 {_digits(value.half_width, 2)}"
        return _digits(value.mean, 4) + interval
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _digits(value: float, digits: int) -> str:
    """Returns a number with some significant digits. Large ones have all digits before the point, and no exponent."""
    return f"{value:,.0f}" if 10 ** (digits - 1) <= abs(value) else f"{value:.{digits}g}"
