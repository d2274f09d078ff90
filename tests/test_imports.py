"""Modules import only lower layers of rar_jax, and the core imports few libraries."""

import ast
import graphlib
import subprocess
import sys

import pytest
from conftest import ROOT

# The layers from the top downwards. The longest prefix of a module's name decides its layer.
LAYERS = (
    ("__main__", "main", "commands"),
    ("demo", "studies"),
    ("generate", "own_images"),
    ("performance.table", "performance.aot", "performance.programs", "performance.benchmarks"),
    ("generation", "training", "tokenizer_training"),
    ("evaluation",),
    ("data", "checkpoints"),
    ("sampling",),
    ("models", "performance", "parallel", "images"),
    ("config", "tokenizer_config", "run_folder"),
    ("models.sizes", "sampling.options", "sampling.groups", "sampling.choose", "sampling.guidance", "orders", "schema"),
    ("fields",),
    ("files", "progress", "errors"),
)
LAYER_OF = {prefix: number for number, prefixes in enumerate(LAYERS) for prefix in prefixes}

BLOCKED = ("grain", "clu", "orbax", "tensorflow_datasets", "tensorflow", "PIL", "array_record", "sklearn", "matplotlib")
CORE = """
import sys
for name in {blocked}:
    sys.modules[name] = None
import rar_jax.config, rar_jax.models.rar, rar_jax.models.vqgan, rar_jax.orders, rar_jax.sampling.sampler
import rar_jax.models.inception, rar_jax.training.step, rar_jax.parallel.partition, rar_jax.training.optimizer
import rar_jax.commands.benchmark, rar_jax.commands.benchmarks.{benchmark}
"""
CONFIG = """
import sys, rar_jax.config
loaded = [name for name in ("rar", "vqgan", "inception") if "rar_jax.models." + name in sys.modules]
assert not loaded, loaded
"""
COMMANDS = """
import importlib, pkgutil, sys
from absl import flags
import rar_jax.commands
for module in pkgutil.iter_modules(rar_jax.commands.__path__):
    importlib.import_module(f"rar_jax.commands.{module.name}")
    assert "tensorflow" not in sys.modules, module.name
    # Several commands define flags of the same names.
    for name in list(flags.FLAGS):
        delattr(flags.FLAGS, name)
"""


def module_name(path):
    """Returns the name of a module without "rar_jax.": "models.rar", or "models" for a package."""
    return ".".join(path.relative_to(ROOT / "rar_jax").with_suffix("").parts).removesuffix("__init__").removesuffix(".")


FILES = {name: path for path in (ROOT / "rar_jax").rglob("*.py") if (name := module_name(path))}


def imported(source):
    """Yields the modules of rar_jax that a program imports, named as in `FILES`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            name = name.removeprefix("rar_jax.")
            # "module.function" is an import of the module.
            name = name if name in FILES else name.rpartition(".")[0]
            if name in FILES:
                yield name


def prefix_of(module):
    """Returns the longest prefix of a module's name that is in `LAYERS`."""
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(prefix for prefix in prefixes if prefix in LAYER_OF)


IMPORTS = {module: set(imported(path.read_text())) for module, path in FILES.items()}


def test_imports_are_found():
    source = (
        "import rar_jax.files\ndef f():\n    from rar_jax.models.rar import RAR\n    from rar_jax import orders, numpy"
    )
    assert list(imported(source)) == ["files", "models.rar", "orders"]
    assert prefix_of("models.sizes") == "models.sizes" and prefix_of("models.rar") == "models"


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_imports_point_downwards(module):
    layer = LAYER_OF[prefix_of(module)]
    upwards = [other for other in IMPORTS[module] if LAYER_OF[prefix_of(other)] < layer]
    assert not upwards, f"rar_jax.{module} imports {', '.join(upwards)} from a higher layer"


def test_imports_have_no_circles():
    """Neither between modules nor between packages. A circle raises a `CycleError` that names it."""
    graphlib.TopologicalSorter(IMPORTS).prepare()
    packages = {prefix: set() for prefix in LAYER_OF}
    for module, others in IMPORTS.items():
        packages[prefix_of(module)] |= {prefix_of(other) for other in others} - {prefix_of(module)}
    graphlib.TopologicalSorter(packages).prepare()


def test_the_config_imports_no_network():
    subprocess.run([sys.executable, "-c", CONFIG], check=True, timeout=120)


@pytest.mark.parametrize("benchmark", ["sample", "train"])
def test_the_core_needs_jax_flax_optax_and_ml_collections_only(benchmark):
    """Each benchmark is imported in its own process, because both define flags of the same names."""
    program = CORE.format(blocked=BLOCKED, benchmark=benchmark)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_commands_do_not_import_tensorflow():
    subprocess.run([sys.executable, "-c", COMMANDS], cwd=ROOT, check=True, timeout=120)


def test_processes_that_decode_images_do_not_import_jax():
    program = "import sys, rar_jax.data.decoding; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
