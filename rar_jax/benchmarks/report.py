"""Results of a benchmark: a table on the terminal and a JSON file."""

import json
import os
import pathlib
import platform
from typing import Any

import jax


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    devices = jax.local_devices()
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def show(results: dict[str, Any], json_path: str | None) -> None:
    """Prints each value beside its name, sections indented, and writes all of it where a path is given."""
    results = {"machine": machine()} | results
    for section, values in results.items():
        print(section)
        for name, value in values.items():
            shown = f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1000 else value
            print(f"  {name:<40} {f'{shown:,.0f}' if isinstance(shown, float) else shown}")
    if json_path:
        pathlib.Path(json_path).write_text(json.dumps(results, indent=2) + "\n")
