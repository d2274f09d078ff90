"""The training command under its known name: python -m rar_jax.main does what python -m rar_jax train does."""

if __name__ == "__main__":
    # Not above, because processes that decode images import this module again, and need no JAX.
    from rar_jax.commands import cli, train

    cli.run(train.main)
