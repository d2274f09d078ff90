"""Measures Inception features, statistics of features, precision and recall, and the reading of images."""

import io
import math
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from rar_jax.evaluation.features import Extractor, InceptionExtractor, extract_all, open_extractor
from rar_jax.evaluation.image_sets import FolderImages, NpzImages
from rar_jax.evaluation.neighbours import precision_recall
from rar_jax.evaluation.statistics import Moments, frechet
from rar_jax.models.inception import ConvNormRelu, InceptionV3
from rar_jax.performance.benchmarks.report import peak_resident
from rar_jax.performance.ceilings import product_rate
from rar_jax.progress import Progress

_SIDE = 256
_FEATURES = 2048
_SPATIAL = 17 * 17 * 7
_READ = 400


def inception_flops(model: InceptionV3) -> int:
    """Returns the FLOPs of the convolutions and of the last layer of the network, for one image.

    A multiply-add counts as two FLOPs. The shapes are found by tracing the network.
    """
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


def _open(weights: str | None) -> tuple[InceptionV3, Extractor]:
    """Returns the Inception network and an extractor with weights from a file, or with random ones."""
    model = InceptionV3()
    if weights:
        return model, open_extractor("inception", weights)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.uint8))["params"]
    return model, InceptionExtractor(model, params)


def _measure_features(model: InceptionV3, extractor: Extractor, batches: int) -> dict[str, float]:
    shape = (extractor.batch_size, _SIDE, _SIDE, 3)
    images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    first = _timed(lambda: jax.block_until_ready(extractor.extract(images)))
    before, times, began = product_rate(jnp.float32), [], time.perf_counter()
    for _ in extract_all(extractor, [images] * batches):
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    # The time of the first batch is left out, because it includes the start of the second one.
    rate = extractor.batch_size / statistics.median(times[1:] or times)
    ceiling = max(before, product_rate(jnp.float32)) * jax.local_device_count()
    flops = inception_flops(model)
    return {
        "images per batch": extractor.batch_size,
        "first batch (compiles), s": first,
        "GFLOP per image": flops / 1e9,
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
        "images/s, moments of pool and spatial features": count / seconds,
        "Frechet distance, s": _timed(lambda: frechet(a, b)),
    }


def _measure_neighbours(num_samples: int, num_references: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    reference, samples = (
        rng.standard_normal((count, _FEATURES), np.float32) for count in (num_references, num_samples)
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


def measure(
    inception: str | None = None, *, batches: int = 12, num_samples: int = 50_000, num_references: int = 10_000
) -> dict[str, dict[str, Any]]:
    """Times the parts of an evaluation on synthetic images and features.

    Args:
      inception: weights of the Inception network (`checkpoints.weights`). None: random weights.
      batches: number of timed batches of Inception features.
      num_samples, num_references: numbers of features that precision and recall compare.

    Returns:
      Section -> name -> value. The names hold the units.

    Raises:
      UserError: the weights cannot be read.
    """
    model, extractor = _open(inception)
    results, progress = {}, Progress("measure", 4, unit="part")
    for name, part in (
        (f"Inception features, {_SIDE} x {_SIDE}", lambda: _measure_features(model, extractor, batches)),
        ("statistics", _measure_statistics),
        ("reading", _measure_reading),
        ("precision and recall", lambda: _measure_neighbours(num_samples, num_references)),
    ):
        results[name] = part()
        progress.update()
    progress.close()
    results["memory"] = {"peak resident, MB": peak_resident() / 1e6}
    return results
