"""Measures the loader, the JSONL import, the decoding of JPEGs and the tokenizer, on synthetic data."""

import concurrent.futures
import functools
import io
import json
import multiprocessing
import pathlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from rar_jax.data.jsonl import import_jsonl
from rar_jax.data.loader import train_iterator
from rar_jax.data.pictures import center_square, read_picture, square_side
from rar_jax.data.records import Description, TokenRecords, write_records
from rar_jax.data.tokenizers import Tokenizer, VQGANTokenizer, open_tokenizer
from rar_jax.models.sizes import VQGANConfig
from rar_jax.models.vqgan import VQGAN
from rar_jax.performance.benchmarks.report import peak_resident
from rar_jax.progress import Progress

_SMALL = 50_000
_TOKENS = 256
_CODES = 1024
_CLASSES = 1000
_WINDOWS = 5
_WINDOW_SECONDS = 3.0
_IMAGE_SIZE = 256
# The usual size of an ImageNet photograph in pixels.
_PHOTOGRAPH = (500, 375)


def _synthetic_records(count: int, progress: Progress) -> Iterator[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(0)
    for start in range(0, count, 10_000):
        size = min(10_000, count - start)
        codes = rng.integers(_CODES, size=(size, _TOKENS), dtype=np.uint16)
        yield from zip(codes, rng.integers(_CLASSES, size=size).tolist(), strict=True)
        progress.update(size)


def _write_records(folder: pathlib.Path, count: int) -> None:
    progress = Progress(f"write {count:,} records", count, unit="record")
    class_names = tuple(map(str, range(_CLASSES)))
    described = Description(
        grid_side=16, codebook_size=_CODES, class_names=class_names, tokenizer="synthetic", source="a benchmark"
    )
    write_records(folder, _synthetic_records(count, progress), described)
    progress.close()


def _resident_mb() -> float:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _measure_loader(folder: pathlib.Path, batch_size: int) -> dict[str, float]:
    began = time.perf_counter()
    records = TokenRecords(folder)
    opened = time.perf_counter()
    batches = train_iterator(records, batch_size, 10**9, seed=0)
    next(batches)
    first = time.perf_counter()
    rates = []
    for _ in range(_WINDOWS):
        window, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - window) < _WINDOW_SECONDS:
            next(batches)
            count += batch_size
        rates.append(count / passed)
    return {
        "records": records.num_records,
        "opening, s": opened - began,
        "first batch, with opening, s": first - began,
        "records/s, median": statistics.median(rates),
        "records/s, slowest window": min(rates),
        "resident memory, MB": _resident_mb(),
    }


def _write_jsonl(path: pathlib.Path, lines: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for _ in range(lines):
            tokens = rng.integers(_CODES, size=_TOKENS).tolist()
            file.write(json.dumps({"class_id": int(rng.integers(_CLASSES)), "tokens": tokens}) + "\n")


def _measure_import(folder: pathlib.Path, lines: int) -> dict[str, float]:
    began = time.perf_counter()
    made = import_jsonl(
        folder / f"{lines}.jsonl",
        folder / f"imported-{lines}",
        grid_side=16,
        codebook_size=_CODES,
        class_names=tuple(map(str, range(_CLASSES))),
    )
    return {
        "lines": made.num_images,
        "lines/s": lines / (time.perf_counter() - began),
        "peak resident memory, MB": peak_resident() / 1e6,
    }


def _in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a new process, so that the memory that it measures is its own."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _measure_files(folder: pathlib.Path, records: int, lines: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Measures the loader and the JSONL import, each on a small and a large data set that is written to the folder."""
    results = {}
    for count in (_SMALL, records):
        _write_records(folder / str(count), count)
        measure_loader = functools.partial(_in_fresh_process, _measure_loader)
        results[f"loader, {count:,} records"] = measure_loader(folder / str(count), min(batch_size, count))
    for count in (lines // 10, lines):
        _write_jsonl(folder / f"{count}.jsonl", count)
        results[f"JSONL import, {count:,} lines"] = _in_fresh_process(_measure_import, folder, count)
    return results


def _measure_decoding() -> dict[str, float]:
    photograph = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).resize(_PHOTOGRAPH).save(photograph, "JPEG", quality=92)
    rates = {}
    for crops in ("center", "ten"):
        count, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < _WINDOW_SECONDS:
            center_square(read_picture(photograph.getvalue()), square_side(crops, _IMAGE_SIZE))
            count += 1
        rates[f"images/s per core, {crops}"] = count / passed
    return rates


def _synthetic_tokenizer() -> Tokenizer:
    """Returns a tokenizer of the published f16 size with random weights."""
    model = VQGAN(VQGANConfig())
    side = model.config.downsampling
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, side, side, 3), np.float32))["params"]
    return VQGANTokenizer(model, params, _IMAGE_SIZE)


def _measure_tokenizer(tokenizer: Tokenizer, decoding: dict[str, float]) -> dict[str, float]:
    """Measures a tokenizer, and compares it with the rates of `_measure_decoding`."""
    shape = (tokenizer.batch_size, _IMAGE_SIZE, _IMAGE_SIZE, 3)
    images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        tokenizer.encode(images)
        times.append(time.perf_counter() - began)
    rate = tokenizer.batch_size / statistics.median(times[1:])
    results = {
        "batch": tokenizer.batch_size,
        "first batch (compiles), s": times[0],
        "crops/s on all devices": rate,
    }
    for crops, per_image in (("center", 1), ("ten", 10)):
        results[f"images/s on all devices, {crops}"] = rate / per_image
        results[f"cores that keep the devices busy, {crops}"] = (
            rate / per_image / decoding[f"images/s per core, {crops}"]
        )
    return results


def measure(
    tokenizer: str | None = None,
    *,
    records: int = 5_000_000,
    lines: int = 200_000,
    batch_size: int = 2048,
    folder: pathlib.Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Times the steps that turn images into batches of tokens.

    Args:
      tokenizer: weights of a tokenizer (`checkpoints.weights`). None: random weights of the published f16 size.
      records: number of records in the large data set.
      lines: number of lines in the large JSONL file.
      batch_size: number of records in a batch.
      folder: where a temporary folder for the data sets is made, which is removed at the end. None: the system's
        folder for temporary files.

    Returns:
      Section -> name -> value. The names hold the units.

    Raises:
      UserError: the tokenizer cannot be read.
    """
    opened = open_tokenizer(tokenizer, _IMAGE_SIZE) if tokenizer else _synthetic_tokenizer()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        results = _measure_files(pathlib.Path(scratch), records, lines, batch_size)
    decoding = _measure_decoding()
    return results | {"image decoding": decoding, "tokenizer": _measure_tokenizer(opened, decoding)}
