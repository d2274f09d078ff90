"""Compiles for a TPU slice that is not attached: memory, collectives and roofline of a config's program."""

from rar_jax.commands import cli
from rar_jax.performance.aot import main

if __name__ == "__main__":
    cli.run(main)
