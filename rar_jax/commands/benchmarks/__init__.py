"""The commands `python -m rar_jax benchmark NAME`, a file each."""
