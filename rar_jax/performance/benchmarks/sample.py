"""Measures the decode loop of a config with random weights."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rar_jax.config import Config, sample_options
from rar_jax.errors import UserError
from rar_jax.models.rar import RAR
from rar_jax.models.sizes import VQGANConfig
from rar_jax.models.vqgan import VQGAN
from rar_jax.parallel.mesh import batch_sharding, local_mesh, replicated
from rar_jax.performance import ceilings
from rar_jax.performance.benchmarks.report import peak_memory
from rar_jax.performance.costs import decode_work
from rar_jax.sampling.decode import decode_segments
from rar_jax.sampling.options import Options
from rar_jax.sampling.sampler import Sampler

# Codes [B, T] -> images uint8 [B, H, W, 3] on the host.
Detokenizer = Callable[[jax.Array], np.ndarray]

# The number of images that `data.tokenizers` decodes at once.
_DETOKENIZED_PER_DEVICE = 16


def _init(model: RAR) -> dict[str, Any]:
    zero = jnp.zeros((1, 1), jnp.int32)
    return model.init(jax.random.key(0), zero, zero[0], jnp.arange(model.config.num_tokens)[None])["params"]


def _make_sampler(config: Config, dtype: str | None) -> Sampler:
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else config.train.dtype)
    model = RAR(config.model, jnp.dtype(dtype))
    mesh = local_mesh()
    params = jax.jit(_init, static_argnums=0, out_shardings=replicated(mesh))(model)
    return Sampler(model, params, mesh)


def _make_detokenizer(model: RAR, mesh: Mesh) -> Detokenizer | None:
    """Returns a detokenizer of the published f16 size with random weights, or None if its codebook does not fit."""
    vqgan = VQGAN(VQGANConfig())
    if model.config.codebook_size != vqgan.config.codebook_size:
        return None
    side = vqgan.config.downsampling
    init = jax.jit(lambda: vqgan.init(jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"])
    params = jax.device_put(init(), replicated(mesh))

    @jax.jit
    def decode(params, codes):
        codes = codes.reshape(-1, model.config.grid_side, model.config.grid_side)
        return vqgan.apply({"params": params}, codes, method="decode_pixels")

    def detokenize(tokens):
        chunk = _DETOKENIZED_PER_DEVICE * mesh.size
        chunks = (tokens[start : start + chunk] for start in range(0, len(tokens), chunk))
        images = [decode(params, jax.device_put(codes, batch_sharding(mesh))) for codes in chunks]
        return np.concatenate(jax.device_get(images))

    return detokenize


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the time of a call in s, and its result."""
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def _decode(sampler: Sampler, options: Options, batch: int) -> jax.Array:
    """Samples a batch of images of all classes in turn: codes [B, T]."""
    numbers = np.arange(batch, dtype=np.int32)
    tokens, _ = sampler.decode(numbers % sampler.model.config.num_classes, numbers, 0, options)
    return tokens.block_until_ready()


def _measure_batch(
    sampler: Sampler,
    options: Options,
    batch: int,
    repeats: int,
    detokenize: Detokenizer | None,
    first: tuple[float, dict[str, float]],
) -> dict[str, Any]:
    """Times `repeats` decodes of a batch, and compares them with the least time by the ceilings of this machine.

    `first` has the time of the first decode, which compiles the loop, and the peak memory after it.
    """
    model, devices, guided = sampler.model, sampler.mesh.size, options.guided

    def decode():
        return _decode(sampler, options, batch)

    def measure_ceilings():
        return ceilings.product_rate(model.dtype), ceilings.bandwidth()

    before = measure_ceilings()
    times = [_timed(decode)[0] for _ in range(repeats)]
    seconds = statistics.median(times)
    # Measured before and after, because the ceilings of a machine drift.
    rate, bandwidth = map(statistics.mean, zip(before, measure_ceilings(), strict=True))
    sizes = options.pass_sizes(model.config)
    passes, modulations = decode_work(model.config, batch // devices, guided, model.dtype.itemsize, sizes)
    floor = sum(work.seconds(rate, bandwidth) for work in passes)
    results = {
        "batch": batch,
        "guidance": guided,
        "dtype": model.dtype.name,
        "passes": len(sizes),
        "compiled loops": len(decode_segments(model, (2 if guided else 1) * batch // devices, sizes)),
        "compile, s": first[0] - seconds,
        "decode, s, median": seconds,
        "decode, s, slowest": max(times),
        "pass, ms": 1e3 * seconds / len(sizes),
        "images/s": batch / seconds,
        "memory bandwidth per device, bytes/s": bandwidth,
        "product rate per device, FLOP/s": rate,
        "floor of the passes, s": floor,
        "floor of the modulations, s": modulations / rate,
        "floor / time": (floor + modulations / rate) / seconds,
    }
    if detokenize is not None:
        detokenize(decode())
        both = statistics.median(_timed(lambda: detokenize(decode()))[0] for _ in range(repeats))
        results["images/s with detokenization"] = batch / both
    return results | first[1]


def measure(
    config: Config,
    batch_sizes: Sequence[int],
    steps: Sequence[int] = (),
    *,
    dtype: str | None = None,
    detokenize: bool = True,
    repeats: int = 3,
) -> dict[str, dict[str, Any]]:
    """Times the decode loop on the devices of this process, for each batch size and number of steps.

    Args:
      config: the experiment. No data is read.
      batch_sizes: numbers of images decoded at once.
      steps: numbers of passes that draw all tokens; 0 draws one token per pass. By default that of the config.
      dtype: compute dtype. None: float32 on a CPU, otherwise the one of the config.
      detokenize: also measure with a tokenizer of the published f16 size, if the codebook has its size.
      repeats: number of timed batches, after one warm-up batch.

    Returns:
      Section -> name -> value. The names hold the units. A peak of memory is that of decoding without the tokenizer,
      and includes those of the sections before it.

    Raises:
      UserError: a batch size is not a multiple of the number of devices, there are more steps than tokens, or verify is
        set.
    """
    for size in batch_sizes:
        if size < 1 or size % jax.local_device_count():
            raise UserError(f"batch_size={size} must be a multiple of the {jax.local_device_count()} devices here")
    options = [dataclasses.replace(sample_options(config), steps=each) for each in steps or [config.sample.steps]]
    for each in options:
        each.pass_sizes(config.model)
    sampler = _make_sampler(config, dtype)
    detokenizer = _make_detokenizer(sampler.model, sampler.mesh) if detokenize else None
    sections = {
        f"sampling, {config.name}, batch {size}" + (f", {each.steps} steps" if each.steps else ""): (each, size)
        for size in batch_sizes
        for each in options
    }
    # Before the ceilings are measured, which takes memory too.
    firsts = {}
    for name, section in sections.items():
        seconds, _ = _timed(functools.partial(_decode, sampler, *section))
        firsts[name] = seconds, peak_memory()
    return {
        name: _measure_batch(sampler, *section, repeats, detokenizer, firsts[name])
        for name, section in sections.items()
    }
