"""The training step of a config on made-up tokens: python -m rar_jax benchmark train --config=configs/rar_b.py ..."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from rar_jax.commands import cli
from rar_jax.config import Config, mesh_shape, without_data
from rar_jax.parallel.mesh import make_mesh, put_batch
from rar_jax.performance import ceilings
from rar_jax.performance.benchmarks.report import peak_memory, show
from rar_jax.performance.costs import train_flops
from rar_jax.training.program import make_program

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/; its data is not read.")
_STEPS = flags.DEFINE_integer("steps", 5, "That are timed, after two that are not.", lower_bound=1)
_PROFILE = flags.DEFINE_string("profile", None, "Also write a trace of a step to this folder, for TensorBoard.")
_JSON = flags.DEFINE_string("json", None, "Also write the results to this file.")

_WARM_UP = 2


def _made_up(config: Config) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    model, rows = config.model, config.train.batch_size
    return {
        "tokens": rng.integers(model.codebook_size, size=(rows, model.grid_side**2), dtype=np.int32),
        "label": rng.integers(model.num_classes, size=rows, dtype=np.int32),
    }


def _measure(config: Config) -> dict[str, Any]:
    mesh = make_mesh(mesh_shape(config, jax.device_count()))
    program = make_program(config)
    dtype = jnp.dtype(config.train.dtype)
    rates = [ceilings.product_rate(dtype)]
    state = jax.block_until_ready(jax.jit(program.init, out_shardings=program.shardings(mesh))())
    batch = put_batch(_made_up(config), mesh)
    began = time.perf_counter()
    step = program.jit_step(mesh).lower(state, batch).compile()
    compiled = time.perf_counter() - began
    times = []
    for number in range(_WARM_UP + _STEPS.value):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        if number >= _WARM_UP:
            times.append(time.perf_counter() - began)
    if _PROFILE.value:
        with jax.profiler.trace(_PROFILE.value):
            state, metrics = jax.block_until_ready(step(state, batch))
    # A machine's rate wanders, so that it is taken on both sides.
    rates.append(ceilings.product_rate(dtype))
    rate, seconds = statistics.mean(rates), statistics.median(times)
    flops = train_flops(program.model.config) * config.train.batch_size / mesh.size
    return {
        "batch": config.train.batch_size,
        "dtype": config.train.dtype,
        "remat": config.train.remat,
        "compile, s": compiled,
        "step, s, median": seconds,
        "step, s, slowest": max(times),
        "images/s": config.train.batch_size / seconds,
        "model FLOP of a step, a device": flops,
        "product rate, FLOP/s, a device": rate,
        "model FLOP utilisation": flops / seconds / rate,
        "loss": float(metrics["loss"]),
    } | peak_memory()


def main(argv):
    del argv
    with cli.user_errors():
        config = without_data(_CONFIG.value)
        mesh_shape(config, jax.device_count())
    show({f"training step, {config.name}": _measure(config)}, _JSON.value)
