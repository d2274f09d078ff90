"""Inception features, statistics, precision and recall, reading: python -m rar_jax benchmark evaluate."""

import io
import math
import pathlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image
from sklearn.datasets import load_sample_image

from rar_jax.commands import cli
from rar_jax.evaluation.features import Extractor, InceptionExtractor, extract_all, open_extractor
from rar_jax.evaluation.image_sets import FolderImages, NpzImages
from rar_jax.evaluation.neighbours import precision_recall
from rar_jax.evaluation.statistics import Moments, frechet
from rar_jax.models.inception import ConvNormRelu, InceptionV3
from rar_jax.performance.benchmarks.report import show
from rar_jax.performance.ceilings import product_rate
from rar_jax.progress import Progress

_INCEPTION = flags.DEFINE_string("inception", None, "Weights of the network; by default made-up ones.")
_BATCHES = flags.DEFINE_integer("batches", 12, "Of Inception features that are timed.", lower_bound=1)
_SAMPLES = flags.DEFINE_integer("samples", 50_000, "Features of samples, for precision and recall.", 16)
_REFERENCES = flags.DEFINE_integer("references", 10_000, "Features of references.", 16)
_JSON = flags.DEFINE_string("json", None, "Also write the results to this file.")

_SIDE = 256
_FEATURES = 2048
_SPATIAL = 17 * 17 * 7
_READ = 400


def inception_flops(model: InceptionV3) -> int:
    """FLOPs of the network for an image (a multiply-add is two): its convolutions, as traced, and its last layer."""
    total = 0

    def count(call, args, kwargs, context):
        nonlocal total
        out = call(*args, **kwargs)
        inputs = args[0].shape[-1] if args else 0
        if isinstance(context.module, ConvNormRelu):
            total += 2 * math.prod(out.shape) * math.prod(context.module.size) * inputs
        elif isinstance(context.module, nn.Dense):
            total += 2 * math.prod(out.shape) * inputs
        return out

    with nn.intercept_methods(count):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return total


def _timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _open() -> tuple[InceptionV3, Extractor]:
    model = InceptionV3()
    if _INCEPTION.value:
        return model, open_extractor("inception", _INCEPTION.value)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.uint8))["params"]
    return model, InceptionExtractor(model, params)


def _measure_features(model: InceptionV3, extractor: Extractor) -> dict[str, float]:
    shape = (extractor.batch_size, _SIDE, _SIDE, 3)
    images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    first = _timed(lambda: jax.block_until_ready(extractor.extract(images)))
    before, times, began = product_rate(jnp.float32), [], time.perf_counter()
    for _ in extract_all(extractor, [images] * _BATCHES.value):
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    # The first to arrive waited for itself and the next.
    rate = extractor.batch_size / statistics.median(times[1:] or times)
    ceiling = max(before, product_rate(jnp.float32)) * jax.local_device_count()
    flops = inception_flops(model)
    return {
        "images a batch": extractor.batch_size,
        "first batch (compiles), s": first,
        "GFLOP an image": flops / 1e9,
        "images/s": rate,
        "GFLOP/s": rate * flops / 1e9,
        "ceiling of float32 products, GFLOP/s": ceiling / 1e9,
        "share of the ceiling": rate * flops / ceiling,
    }


def _measure_statistics() -> dict[str, float]:
    rng, count, seconds = np.random.default_rng(0), 2 * _FEATURES, 0.0
    for size in (_SPATIAL, _FEATURES):
        moments, batches = Moments(), np.split(rng.standard_normal((count, size), np.float32), 32)
        seconds += _timed(lambda moments=moments, batches=batches: [moments.add(batch) for batch in batches])
    a, b = moments.gaussian(), moments.gaussian()
    return {
        "images/s counted in, pool and spatial": count / seconds,
        "Frechet distance, s": _timed(lambda: frechet(a, b)),
    }


def _measure_neighbours() -> dict[str, float]:
    rng = np.random.default_rng(0)
    reference, samples = (
        rng.standard_normal((count, _FEATURES), np.float32) for count in (_REFERENCES.value, _SAMPLES.value)
    )
    return {
        "samples": len(samples),
        "references": len(reference),
        "precision and recall, s": _timed(lambda: precision_recall(reference, samples)),
    }


def _measure_reading() -> dict[str, float]:
    photograph = np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((_SIDE, _SIDE)))
    png = io.BytesIO()
    Image.fromarray(photograph).save(png, "PNG")
    rates = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for i in range(_READ):
            (folder / f"{i}.png").write_bytes(png.getvalue())
        np.savez(folder / "images.npz", np.broadcast_to(photograph, (_READ, *photograph.shape)))
        for kind, images in ((".npz", NpzImages(folder / "images.npz")), ("folder of PNGs", FolderImages(folder))):
            rates[f"images/s, {kind}"] = _READ / _timed(lambda images=images: list(map(len, images.batches(64))))
    return rates


def main(argv):
    del argv
    with cli.user_errors():
        model, extractor = _open()
    results, progress = {}, Progress("measure", 4, unit="part")
    for name, measure in (
        (f"Inception features, {_SIDE} x {_SIDE}", lambda: _measure_features(model, extractor)),
        ("statistics", _measure_statistics),
        ("reading", _measure_reading),
        ("precision and recall", _measure_neighbours),
    ):
        results[name] = measure()
        progress.update()
    progress.close()
    results["memory"] = {"peak resident, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}
    show(results, _JSON.value)
