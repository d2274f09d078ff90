"""The commands `python -m rar_jax benchmark NAME`, one per file."""
