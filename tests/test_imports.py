import subprocess
import sys

import pytest

BLOCKED = ("grain", "clu", "orbax", "tensorflow_datasets", "tensorflow", "PIL", "array_record", "sklearn", "matplotlib")
PROGRAM = """
import sys
for name in {blocked}:
    sys.modules[name] = None
import rar_jax.config, rar_jax.models.rar, rar_jax.models.vqgan, rar_jax.orders, rar_jax.sampling.sampler
import rar_jax.models.inception, rar_jax.training.step, rar_jax.parallel.partition, rar_jax.training.optimizer
import rar_jax.commands.benchmark, rar_jax.performance.benchmarks.{benchmark}
"""


@pytest.mark.parametrize("benchmark", ["sample", "train"])
def test_the_core_needs_jax_flax_optax_and_ml_collections_only(benchmark):
    """Each benchmark in a process of its own: both have flags of the same names."""
    program = PROGRAM.format(blocked=BLOCKED, benchmark=benchmark)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("command", ["main", "commands.sample", "commands.tokenize", "commands.evaluate"])
def test_commands_do_not_import_tensorflow(command):
    program = f"import sys, rar_jax.{command}; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
