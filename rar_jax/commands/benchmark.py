"""Measures this machine: python -m rar_jax benchmark NAME [flags]. --help after the name lists the flags."""

import importlib
import sys

from rar_jax.commands import cli

NAMES = ("data", "evaluate", "sample", "train")


def main():
    """Runs the benchmark named by the first argument; each has flags and imports of its own."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        cli.fail(f"name what to measure: python -m rar_jax benchmark {'|'.join(NAMES)}")
    cli.run(importlib.import_module(f"rar_jax.performance.benchmarks.{sys.argv.pop(1)}").main)


if __name__ == "__main__":
    main()
