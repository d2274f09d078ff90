"""The training command under its known name: python -m rar_jax.main does what python -m rar_jax train does."""

from rar_jax.commands import cli
from rar_jax.commands.train import main

if __name__ == "__main__":
    cli.run(main)
