"""Measures this machine: data loading, evaluation, sampling or training.

    python -m rar_jax benchmark data|evaluate|sample|train|train_tokenizer [flags]

--help after the name lists the flags.
"""

import importlib
import sys

from rar_jax.commands import cli

NAMES = ("data", "evaluate", "sample", "train", "train_tokenizer")


def main() -> None:
    """Runs the benchmark that the first argument names. Each one has its own flags and imports."""
    if sys.argv[1:2] in (["--help"], ["-h"]):
        print(__doc__)
        return
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        cli.fail(f"name what to measure: python -m rar_jax benchmark {'|'.join(NAMES)}")
    cli.run(importlib.import_module(f"rar_jax.commands.benchmarks.{sys.argv.pop(1)}").main)
