"""The decode loop of a config, random weights: python -m rar_jax benchmark sample --config=configs/rar_b.py ..."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from rar_jax.commands import cli
from rar_jax.config import DTYPES, Config, sample_options, without_data
from rar_jax.errors import UserError
from rar_jax.models.rar import RAR
from rar_jax.models.vqgan import MASKGIT_F16, VQGAN
from rar_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from rar_jax.performance import ceilings
from rar_jax.performance.benchmarks.report import peak_memory, show
from rar_jax.performance.costs import decode_floor
from rar_jax.sampling.decode import stages
from rar_jax.sampling.options import Options
from rar_jax.sampling.sampler import Sampler

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/; its data is not read.")
_BATCHES = flags.DEFINE_list("batch_size", ["1", "8"], "Images decoded at once; several are measured one by one.")
_DTYPE = flags.DEFINE_enum("dtype", None, DTYPES, "By default float32 on a CPU, else the config's.")
_DETOKENIZE = flags.DEFINE_bool("detokenize", True, "Measure a tokenizer of the published f16 size too, where it fits.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Batches that are timed, after one that is not.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Also write the results to this file.")

# As many as `data.tokenizers` decodes at once.
_DETOKENIZED_A_DEVICE = 16


def _init(model: RAR) -> dict[str, Any]:
    zero = jnp.zeros((1, 1), jnp.int32)
    return model.init(jax.random.key(0), zero, zero[0], jnp.arange(model.config.num_tokens)[None])["params"]


def _make_detokenizer(model: RAR, mesh: Mesh) -> Callable[[jax.Array], np.ndarray] | None:
    """Codes [B, T] -> images uint8 [B, H, W, 3] on the host, or None where the codes are not the f16 tokenizer's."""
    vqgan = VQGAN(**MASKGIT_F16)
    if not _DETOKENIZE.value or model.config.codebook_size != vqgan.codebook_size:
        return None
    side = vqgan.downsampling
    init = jax.jit(lambda: vqgan.init(jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"])
    params = jax.device_put(init(), replicated(mesh))

    @jax.jit
    def decode(params, codes):
        codes = codes.reshape(-1, model.config.grid_side, model.config.grid_side)
        return vqgan.apply({"params": params}, codes, method="decode_pixels")

    def detokenize(tokens):
        chunk = _DETOKENIZED_A_DEVICE * mesh.size
        chunks = (tokens[start : start + chunk] for start in range(0, len(tokens), chunk))
        images = [decode(params, jax.device_put(codes, batch_sharding(mesh))) for codes in chunks]
        return np.concatenate(jax.device_get(images))

    return detokenize


def _measure(sampler: Sampler, options: Options, batch: int, detokenize: Callable | None) -> dict[str, Any]:
    model, devices = sampler.model, sampler.mesh.size
    rates, bandwidths = [], []

    def measure_ceilings():
        bandwidths.append(ceilings.bandwidth())
        rates.append(ceilings.product_rate(model.dtype))

    measure_ceilings()
    labels = np.arange(batch, dtype=np.int32) % model.config.num_classes
    rows = np.arange(batch, dtype=np.int32)

    def decode():
        return sampler.decode(labels, rows, 0, options).block_until_ready()

    def timed(function):
        began = time.perf_counter()
        result = function()
        return time.perf_counter() - began, result

    first, tokens = timed(decode)
    times = [timed(decode)[0] for _ in range(_REPEATS.value)]
    seconds = statistics.median(times)
    # A machine's ceilings wander, so that they are taken on both sides.
    measure_ceilings()
    rate, bandwidth = statistics.mean(rates), statistics.mean(bandwidths)
    guided = options.guided
    steps, modulations = decode_floor(model.config, batch // devices, guided, model.dtype.itemsize, rate, bandwidth)
    results = {
        "batch": batch,
        "guidance": guided,
        "dtype": model.dtype.name,
        "stages of the cache": len(stages(model, (2 if guided else 1) * batch // devices)),
        "compile, s": first - seconds,
        "decode, s, median": seconds,
        "decode, s, slowest": max(times),
        "step, ms": 1e3 * seconds / model.config.num_tokens,
        "images/s": batch / seconds,
        "memory bandwidth, bytes/s, a device": bandwidth,
        "product rate, FLOP/s, a device": rate,
        "floor of the steps, s": steps,
        "floor of the modulations, s": modulations,
        "floor / time": (steps + modulations) / seconds,
    }
    if detokenize is not None:
        detokenize(tokens)
        both = statistics.median(timed(lambda: detokenize(decode()))[0] for _ in range(_REPEATS.value))
        results["images/s with detokenization"] = batch / both
    return results | peak_memory()


def _batch_sizes(devices: int) -> list[int]:
    given = f"--batch_size={','.join(_BATCHES.value)}"
    try:
        sizes = [int(size) for size in _BATCHES.value]
    except ValueError:
        raise UserError(f"{given} must be numbers, such as 1,8") from None
    for size in sizes:
        if size < 1 or size % devices:
            raise UserError(f"{given}: {size} must be a multiple of the {devices} devices here")
    return sizes


def _prepare(config: Config) -> Sampler:
    dtype = _DTYPE.value or ("float32" if jax.default_backend() == "cpu" else config.train.dtype)
    model = RAR(config.model, jnp.dtype(dtype))
    mesh = make_mesh((jax.local_device_count(), 1), jax.local_devices())
    params = jax.jit(_init, static_argnums=0, out_shardings=replicated(mesh))(model)
    return Sampler(model, params, mesh)


def main(argv):
    del argv
    with cli.user_errors():
        config = without_data(_CONFIG.value)
        sizes = _batch_sizes(jax.local_device_count())
    sampler = _prepare(config)
    detokenize = _make_detokenizer(sampler.model, sampler.mesh)
    options = sample_options(config)
    show(
        {f"sampling, {config.name}, batch {size}": _measure(sampler, options, size, detokenize) for size in sizes},
        _JSON.value,
    )
