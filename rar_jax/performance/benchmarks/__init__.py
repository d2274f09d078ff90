"""The benchmarks of `python -m rar_jax benchmark`, a file each. They take arguments and return results."""
