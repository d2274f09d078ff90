"""Compares how the paper's recipe would train on each chip: the table of docs/performance.md."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rar_jax.config import RAR_SIZES, imagenet, mesh_shape, without_data
from rar_jax.errors import UserError
from rar_jax.files import write_atomically
from rar_jax.performance.aot import analyse
from rar_jax.performance.programs import DoesNotFitError
from rar_jax.performance.topologies import open_topology

# The axis `fsdp` of the mesh on each topology, and the fewest microbatches of a step. The rest of the devices are
# copies.
TOPOLOGIES = {"h200:1": (1, 8), "h200:8": (8, 1), "h100:8": (8, 1), "a100:8": (8, 1), "v5e:8x8": (8, 1)}
_COLUMNS = (
    "size",
    "chips",
    "mesh",
    "remat",
    "accumulation",
    "microbatch per chip",
    "memory per chip, GB",
    "counted time of a step, ms",
    "utilisation, counted, %",
)
HEADER = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}"


class Variant(NamedTuple):
    """A training step to compile; the fields are those of the table."""

    size: str
    chips: str
    remat: str
    accumulation: int


def _measure(variant: Variant) -> dict[str, Any]:
    """Compiles a training step, and returns its columns of the table and whether it fits the memory of a chip."""
    fields = imagenet(variant.size)
    fields.train.remat, fields.train.accumulation = variant.remat, variant.accumulation
    fields.mesh.fsdp, _ = TOPOLOGIES[variant.chips]
    config = without_data(fields)
    try:
        sections = list(analyse(config, variant.chips).values())
    except DoesNotFitError as error:
        return {"fits": False, "memory per chip, GB": str(error)}
    found = {name: value for values in sections for name, value in values.items()}
    data, fsdp, _ = mesh_shape(config, found["devices"])
    return {
        "mesh": f"data {data}, fsdp {fsdp}",
        "microbatch per chip": config.train.batch_size // (found["devices"] * variant.accumulation),
        "fits": found["total, GB"] <= found["available, GB"],
        "memory per chip, GB": f"{found['total, GB']:.1f} of {found['available, GB']:.0f}",
        "counted time of a step, ms": found["kernels, launches, collectives, ms"],
        "utilisation, counted, %": found["utilisation, counted, %"],
    }


def _is_complete(row: dict[str, Any]) -> bool:
    """Returns whether a variant has what the table shows."""
    return not row.get("fits", True) or set(_COLUMNS) <= set(row)


class Measured:
    """Variants that have been compiled. In a file, they are kept for a table that was stopped."""

    def __init__(self, path: str | None):
        """Reads the variants of a JSON file, if there is one. `path` is None to keep nothing.

        Raises:
          UserError: the file has other results.
        """
        self._path = None if path is None else pathlib.Path(path)
        exists = self._path is not None and self._path.exists()
        try:
            self._found = json.loads(self._path.read_text()) if exists else []
        except json.JSONDecodeError:
            self._found = None
        if not isinstance(self._found, list) or not all(map(_is_complete, self._found)):
            raise UserError(f"--json={path} does not hold variants of this table: name another file")

    def __contains__(self, topology: str) -> bool:
        return any(row["chips"] == topology for row in self._found)

    def __call__(self, variant: Variant) -> dict[str, Any]:
        """Returns the columns of a variant, which is compiled unless it was."""
        fields = variant._asdict()
        for each in self._found:
            if fields.items() <= each.items():
                return each
        self._found.append(fields | _measure(variant))
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._found, indent=2) + "\n")
        return self._found[-1]


def _fastest(size: str, topology: str, measured: Measured) -> dict[str, Any]:
    """Returns a row: the variant with the least time of those that fit.

    "dots" recomputes no linear layer and moves less than "none", so it is taken where it fits. Elsewhere smaller
    microbatches are compared with "block".
    """
    fewest = TOPOLOGIES[topology][1]
    tried = []
    for accumulation in (fewest, 2 * fewest, 4 * fewest):
        tried.append(measured(Variant(size, topology, "dots", accumulation)))
        if tried[-1]["fits"]:
            break
    if len(tried) > 1:
        tried.append(measured(Variant(size, topology, "block", fewest)))
    fitting = [row for row in tried if row["fits"]]
    if not fitting:
        return {"size": size, "chips": topology, "remat": "does not fit"}
    return min(fitting, key=lambda row: row["counted time of a step, ms"])


def rows(topologies: Sequence[str], path: str | None = None) -> Iterator[dict[str, Any]]:
    """Yields a row for each size and topology: the fastest variant that fits.

    Args:
      topologies: of `TOPOLOGIES`.
      path: JSON file of all variants that are compiled. Those that it already has are not compiled again.

    Raises:
      UserError: a topology is not in the table, its compiler is not installed, or the file has other results.
    """
    for topology in topologies:
        if topology not in TOPOLOGIES:
            raise UserError(f"topology={topology!r} is not in the table, which has {', '.join(TOPOLOGIES)}")
    measured = Measured(path)
    for topology in topologies:
        # Now, because the compiler of a later topology would otherwise be missed after hours.
        if topology not in measured:
            open_topology(topology)
    for topology in topologies:
        for size in RAR_SIZES:
            yield _fastest(size, topology, measured)


def markdown(row: dict[str, Any]) -> str:
    """Returns a row as a line of Markdown."""
    shown = (row.get(column, "") for column in _COLUMNS)
    return f"| {' | '.join(f'{each:.0f}' if isinstance(each, float) else str(each) for each in shown)} |"
