"""Reports the results of a benchmark: a table on the terminal and a JSON file."""

import json
import pathlib
import platform
import resource
import sys
from typing import Any

import jax

from rar_jax.errors import UserError
from rar_jax.parallel.cores import usable_cores


def machine() -> dict[str, Any]:
    """Returns a description of the machine on which the results were measured."""
    devices = jax.local_devices()
    return {
        "cores": usable_cores(),
        "processor": _processor(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        # On NVIDIA GPUs the default for float32 is TF32.
        "precision of products": jax.config.jax_default_matmul_precision or "the platform's default",
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def peak_memory() -> dict[str, float]:
    """Returns the peak memory of the first device if it reports one, otherwise that of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return {"peak memory of a device, GB": stats["peak_bytes_in_use"] / 1e9}
    return {"peak memory of the process, GB": peak_resident() / 1e9}


def peak_resident() -> int:
    """Returns the largest memory that this process has occupied, bytes."""
    # macOS reports bytes, and Linux KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _shown(value: Any, unit: str) -> str:
    """Returns a number followed by its unit, or a text preceded by its name."""
    if isinstance(value, str):
        return f"{unit} {value}".strip()
    if isinstance(value, float):
        value = f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value} {unit}".strip()


def check_json(path: str | None) -> None:
    """Raises a `UserError` if the results cannot be written to the file that --json names, if it names one."""
    if path is None:
        return
    if "://" in path:
        raise UserError(f"--json={path} must be a local file")
    if pathlib.Path(path).is_dir():
        raise UserError(f"--json={path} is a folder: name a file")
    for parent in pathlib.Path(path).parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"--json={path}: {parent} is a file, not a folder")


def show(results: dict[str, Any], json_path: str | None) -> None:
    """Prints a table of results: section -> name -> value, or -> unit -> value. Writes JSON too if a path is given."""
    results = {"machine": machine()} | results
    for section, values in results.items():
        print(section)
        for name, value in values.items():
            parts = value.items() if isinstance(value, dict) else [("", value)]
            print(f"  {name:<40} {', '.join(_shown(each, unit) for unit, each in parts)}")
    if json_path:
        path = pathlib.Path(json_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n")
