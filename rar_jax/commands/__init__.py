"""The commands: `python -m rar_jax COMMAND`."""
