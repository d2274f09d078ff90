"""Runs a command: python -m rar_jax COMMAND [flags]. Without a command it lists them."""

import importlib
import sys

from rar_jax.commands import cli

# What each command does, in a line.
COMMANDS = {
    "sample": "Samples images of a checkpoint: a grid, or a job that writes an .npz or PNGs.",
    "tokenize": "Makes token records from images.",
    "evaluate": "Scores samples against a reference: FID, Inception Score, precision, recall.",
    "convert": "Converts weights between published files and Orbax folders.",
    "benchmark": "Measures this machine: data, evaluate, sample or train.",
    "aot": "Compiles for a TPU slice that is not attached: memory, collectives, roofline.",
}


def main() -> None:
    """Runs the command that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print("usage: python -m rar_jax COMMAND [flags]\n")
        for name, meaning in COMMANDS.items():
            print(f"  {name:<20}{meaning}")
        sys.exit(0 if len(sys.argv) < 2 else cli.USER_MISTAKE)
    command = importlib.import_module(f"rar_jax.commands.{sys.argv.pop(1)}")
    if command.__name__.endswith("benchmark"):
        command.main()
    cli.run(command.main)


if __name__ == "__main__":
    main()
