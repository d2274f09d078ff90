"""What `python -m rar_jax benchmark NAME` measures, a file each."""
