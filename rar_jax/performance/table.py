"""Compares how the paper's recipe would train on each chip: the table of docs/performance.md."""

from collections.abc import Iterator, Sequence
from typing import Any

from rar_jax.config import RAR_SIZES, imagenet, mesh_shape, without_data
from rar_jax.errors import UserError
from rar_jax.models.sizes import REMAT
from rar_jax.performance.aot import analyse
from rar_jax.performance.programs import DoesNotFitError

# The axis `fsdp` of the mesh on each topology. The rest of the devices are copies.
TOPOLOGIES = {"h200:8": 8, "h100:8": 8, "a100:8": 8, "v5e:8x8": 8, "v5p:4x4x4": 16}
_COLUMNS = (
    "size",
    "chips",
    "mesh",
    "remat",
    "images per chip",
    "memory per chip, GB",
    "counted, ms",
    "utilisation, at most",
)
HEADER = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}"


def _measure(size: str, topology: str, remat: str) -> dict[str, Any] | None:
    """Returns a row of the table, or None if the training step does not fit the memory of a chip."""
    fields = imagenet(size)
    fields.train.remat, fields.mesh.fsdp = remat, TOPOLOGIES[topology]
    config = without_data(fields)
    try:
        sections = list(analyse(config, topology).values())
    except DoesNotFitError:
        return None
    found = {name: value for values in sections for name, value in values.items()}
    if found["total, GB"] > found["available, GB"]:
        return None
    data, fsdp, _ = mesh_shape(config, found["devices"])
    return {
        "size": size,
        "chips": topology,
        "mesh": f"data {data}, fsdp {fsdp}",
        "remat": remat,
        "images per chip": config.train.batch_size // found["devices"],
        "memory per chip, GB": f"{found['total, GB']:.1f} of {found['available, GB']:.0f}",
        "counted, ms": found["kernels, launches, collectives, ms"],
        "utilisation, at most": found["utilisation, at most, %"],
    }


def rows(topologies: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields a row for each size and topology: with the `remat` that takes the least time of those that fit.

    Raises:
      UserError: a topology is not in the table, or its compiler is not installed.
    """
    for topology in topologies:
        if topology not in TOPOLOGIES:
            raise UserError(f"topology={topology!r} is not in the table, which has {', '.join(TOPOLOGIES)}")
    for topology in topologies:
        for size in RAR_SIZES:
            fitting = [row for remat in REMAT if (row := _measure(size, topology, remat))]
            if fitting:
                yield min(fitting, key=lambda row: row["counted, ms"])
            else:
                yield {"size": size, "chips": topology, "remat": "does not fit"}


def markdown(row: dict[str, Any]) -> str:
    """Returns a row as a line of Markdown."""
    shown = (row.get(column, "") for column in _COLUMNS)
    return f"| {' | '.join(f'{each:.0f}' if isinstance(each, float) else str(each) for each in shown)} |"
