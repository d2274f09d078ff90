"""Compiles the training step, the decode loop and a tokenizer's training step for devices that are not attached."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from rar_jax.config import Config, mesh_shape, sample_options
from rar_jax.parallel.mesh import batch_sharding, data_mesh, make_mesh, replicated
from rar_jax.performance.topologies import Topology
from rar_jax.sampling.cached import prepare
from rar_jax.sampling.drawing import Batch
from rar_jax.sampling.sampler import jit_decode
from rar_jax.tokenizer_config import TokenizerConfig
from rar_jax.tokenizer_training.program import make_program as make_tokenizer_program
from rar_jax.training.program import make_program

# The two forms in which the compiler reports how much memory a program needs and how much there is.
_OUT_OF_MEMORY = re.compile(r"\(([\d.]+)([MG])\) exceeds available HBM \(([\d.]+)G\)|Used ([\d.]+)([MG]) of ([\d.]+)G")


class DoesNotFitError(Exception):
    """The program needs more memory than a device has. Both sizes are in GB."""

    def __init__(self, needed: float, available: float):
        super().__init__(f"needs {needed:.1f} of {available:.1f} GB")


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    """Returns a tree of shapes with shardings, which are a tree of the same structure or one sharding for all."""
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _compile(lowered: jax.stages.Lowered, topology: Topology) -> jax.stages.Compiled:
    """Compiles a program. Raises a `DoesNotFitError` if it needs more memory than a device has."""
    try:
        return lowered.compile(compiler_options=topology.options)
    except jax.errors.JaxRuntimeError as error:
        match = _OUT_OF_MEMORY.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not match:
            raise
        needed, unit, available = [group for group in match.groups() if group]
        gib = 2**30 / 1e9
        raise DoesNotFitError(float(needed) * gib / (1 if unit == "G" else 1024), float(available) * gib) from None


def compile_step(config: Config, topology: Topology) -> jax.stages.Compiled:
    """Compiles the training step of a config.

    Raises:
      UserError: the mesh or the batch size cannot be divided over the devices.
      DoesNotFitError: the program needs more memory than a device has.
    """
    mesh = make_mesh(mesh_shape(config, len(topology.devices)), topology.devices)
    program = make_program(config)
    state = _with_shardings(jax.eval_shape(program.init), program.shardings(mesh))
    batch_size = config.train.batch_size
    batch = {
        "tokens": jax.ShapeDtypeStruct((batch_size, config.model.num_tokens), jnp.int32),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    return _compile(program.lower_step(mesh, state, _with_shardings(batch, batch_sharding(mesh))), topology)


def compile_decode(config: Config, batch_size: int, topology: Topology) -> jax.stages.Compiled:
    """Compiles the decode loop of a config. Each device has all the weights and decodes its share of the images.

    Raises:
      UserError: the batch size is not a multiple of the number of devices.
      DoesNotFitError: the program needs more memory than a device has.
    """
    mesh = data_mesh("--batch_size", batch_size, topology.devices)
    program = make_program(config)
    model = program.model
    params = jax.eval_shape(functools.partial(prepare, model, few_rows=False), jax.eval_shape(program.init).params)
    images = _with_shardings(jax.ShapeDtypeStruct((batch_size,), jnp.int32), batch_sharding(mesh))
    options = sample_options(config)
    traced = jax.eval_shape(lambda: options.traced(model.config, seed=0))
    params, traced = _with_shardings((params, traced), replicated(mesh))
    program = jit_decode(model, options.plan(model.config), mesh)
    return _compile(program.lower(params, Batch(images, images), traced), topology)


def compile_tokenizer_step(config: TokenizerConfig, topology: Topology) -> jax.stages.Compiled:
    """Compiles the training step of a tokenizer, without a perceptual distance.

    Raises:
      UserError: the batch size is not a multiple of the number of devices.
      DoesNotFitError: the program needs more memory than a device has.
    """
    mesh = data_mesh("config.train.batch_size", config.train.batch_size, topology.devices)
    program = make_tokenizer_program(config)
    state = _with_shardings(jax.eval_shape(program.init), program.shardings(mesh))
    side = config.data.image_size
    images = jax.ShapeDtypeStruct((config.train.batch_size, side, side, 3), jnp.uint8)
    batch = {"image": _with_shardings(images, batch_sharding(mesh))}
    return _compile(program.lower_step(mesh, state, batch), topology)


def memory(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Returns the memory that a program needs on each device, in GB, as reported by the compiler."""
    stats = compiled.memory_analysis()
    new_output = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return {
        "arguments, GB": stats.argument_size_in_bytes / 1e9,
        "temporaries, GB": stats.temp_size_in_bytes / 1e9,
        "output not stored in the arguments, GB": new_output / 1e9,
        "program, GB": stats.generated_code_size_in_bytes / 1e9,
    }
