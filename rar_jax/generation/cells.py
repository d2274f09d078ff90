"""Measures the cells of a grid of settings one after another. A grid that was stopped is resumed."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from etils import epath

from rar_jax.files import JsonLinesFile, hold_to_plan, read_json_lines
from rar_jax.progress import Progress
from rar_jax.run_folder import lock

# A NamedTuple of JSON values.
Cell = TypeVar("Cell", bound=NamedTuple)


def measure_cells(
    path: epath.PathLike,
    plan: dict[str, Any],
    cells: Sequence[Cell],
    images: int,
    measure: Callable[[Cell, Callable[[int], None]], dict[str, float]],
) -> dict[Cell, dict[str, float]]:
    """Measures every cell that the file does not have yet.

    Args:
      path: a file of JSON lines. Its first line is the plan, and each other line a cell with its values.
      plan: everything else that the values depend on; JSON values.
      cells: at least one, all of one type.
      images: number of images of each cell, for the progress bar.
      measure: returns the values of a cell. It calls its second argument with the number of images of each batch.

    Returns:
      The values of these cells, and of other ones that the file has.

    Raises:
      UserError: the file was started with another plan, or another process measures the same cells.
    """
    path, kind = epath.Path(path), type(cells[0])
    with lock(path.parent, path.stem, "measures"):
        lines = read_json_lines(path) or [plan]
        hold_to_plan("out", path.parent, lines[0], plan)
        # This removes a last line that was cut short.
        file = JsonLinesFile(path, lines)
        found = {kind(*(line.pop(name) for name in kind._fields)): line for line in lines[1:]}
        left = [cell for cell in cells if cell not in found]
        progress = Progress(path.stem, len(cells) * images, (len(cells) - len(left)) * images, unit="image")
        with contextlib.closing(file):
            for cell in left:
                found[cell] = measure(cell, progress.update)
                file.add(cell._asdict() | found[cell])
                name, value = next(iter(found[cell].items()))
                progress.update(0, f"{_described(cell)}: {name} {value:.4g}")
        progress.close()
    return found


def _described(cell: Cell) -> str:
    values = cell._asdict().items()
    return " ".join(f"{name}={f'{value:g}' if isinstance(value, float) else value}" for name, value in values)
