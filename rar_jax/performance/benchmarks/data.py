"""Loader, JSONL import, image decoding: python -m rar_jax benchmark data."""

import concurrent.futures
import contextlib
import functools
import io
import json
import multiprocessing
import pathlib
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image
from sklearn.datasets import load_sample_image

from rar_jax.commands import cli
from rar_jax.data.jsonl import import_jsonl
from rar_jax.data.loader import train_iterator
from rar_jax.data.pictures import center_square, read_picture, square_side
from rar_jax.data.records import TokenRecords, write_records
from rar_jax.data.tokenizers import Tokenizer, VQGANTokenizer, open_tokenizer
from rar_jax.models.vqgan import MASKGIT_F16, VQGAN
from rar_jax.performance.benchmarks.report import show
from rar_jax.progress import Progress
from rar_jax.run_folder import check_folder

_RECORDS = flags.DEFINE_integer("records", 5_000_000, "In the large data set that is made up for this.", 2048)
_LINES = flags.DEFINE_integer("lines", 200_000, "In the JSONL file that is made up for this.", 10)
_BATCH = flags.DEFINE_integer("batch_size", 2048, "Records a batch.", lower_bound=1)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Weights; by default made-up ones of the published f16 size.")
_FOLDER = flags.DEFINE_string(
    "folder", None, "Where the made-up data goes while it is needed; by default a temporary one."
)
_JSON = flags.DEFINE_string("json", None, "Also write the results to this file.")

_SMALL = 50_000
_TOKENS = 256
_CODES = 1024
_CLASSES = 1000
_WINDOWS = 5
_WINDOW_SECONDS = 3.0
_IMAGE_SIZE = 256
# The usual size of an ImageNet file.
_PHOTOGRAPH = (500, 375)


def _made_up(count: int, progress: Progress) -> Iterator[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(0)
    for start in range(0, count, 10_000):
        size = min(10_000, count - start)
        codes = rng.integers(_CODES, size=(size, _TOKENS), dtype=np.uint16)
        yield from zip(codes, rng.integers(_CLASSES, size=size).tolist(), strict=True)
        progress.update(size)


def _write(folder: pathlib.Path, count: int) -> None:
    progress = Progress(f"write {count:,} records", count, unit="record")
    write_records(
        folder,
        _made_up(count, progress),
        grid_side=16,
        codebook_size=_CODES,
        class_names=tuple(map(str, range(_CLASSES))),
        tokenizer="made up",
        source="a benchmark",
    )
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
        "first batch after the beginning, s": first - began,
        "records/s, median": statistics.median(rates),
        "records/s, slowest window": min(rates),
        "resident memory, MB": _resident_mb(),
    }


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
        "peak resident memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def _in_fresh_process(function, *arguments) -> Any:
    """So that its memory is its own."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _write_jsonl(path: pathlib.Path, lines: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for _ in range(lines):
            tokens = rng.integers(_CODES, size=_TOKENS).tolist()
            file.write(json.dumps({"class_id": int(rng.integers(_CLASSES)), "tokens": tokens}) + "\n")


def _measure_decoding() -> dict[str, float]:
    photograph = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).resize(_PHOTOGRAPH).save(photograph, "JPEG", quality=92)
    rates = {}
    for crops in ("center", "ten"):
        count, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < _WINDOW_SECONDS:
            center_square(read_picture(photograph.getvalue()), square_side(crops, _IMAGE_SIZE))
            count += 1
        rates[f"images/s a core, {crops}"] = count / passed
    return rates


def _made_up_tokenizer() -> Tokenizer:
    model = VQGAN(**MASKGIT_F16)
    side = model.downsampling
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, side, side, 3), np.float32))["params"]
    return VQGANTokenizer(model, params, _IMAGE_SIZE)


def _measure_tokenizer(tokenizer: Tokenizer) -> dict[str, float]:
    shape = (tokenizer.batch_size, _IMAGE_SIZE, _IMAGE_SIZE, 3)
    images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    began = time.perf_counter()
    tokenizer.encode(images)
    first, times = time.perf_counter() - began, []
    for _ in range(3):
        began = time.perf_counter()
        tokenizer.encode(images)
        times.append(time.perf_counter() - began)
    return {
        "batch": tokenizer.batch_size,
        "first batch (compiles), s": first,
        "crops/s on all devices": tokenizer.batch_size / statistics.median(times),
    }


def main(argv):
    del argv
    with cli.user_errors():
        if _FOLDER.value:
            check_folder("folder", _FOLDER.value)
        tokenizer = open_tokenizer(_TOKENIZER.value, _IMAGE_SIZE) if _TOKENIZER.value else None
    results = {}
    with contextlib.ExitStack() as stack:
        if _FOLDER.value:
            pathlib.Path(_FOLDER.value).mkdir(parents=True, exist_ok=True)
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_FOLDER.value)))
        for count in (_SMALL, _RECORDS.value):
            _write(folder / str(count), count)
            measure = functools.partial(_in_fresh_process, _measure_loader)
            results[f"loader, {count:,} records"] = measure(folder / str(count), min(_BATCH.value, count))
        for lines in (_LINES.value // 10, _LINES.value):
            _write_jsonl(folder / f"{lines}.jsonl", lines)
            results[f"JSONL import, {lines:,} lines"] = _in_fresh_process(_measure_import, folder, lines)
    decoding = results["image decoding"] = _measure_decoding()
    device = results["tokenizer"] = _measure_tokenizer(tokenizer or _made_up_tokenizer())
    for crops, each in (("center", 1), ("ten", 10)):
        images = device["crops/s on all devices"] / each
        device[f"images/s on all devices, {crops}"] = images
        device[f"cores that keep the devices busy, {crops}"] = images / decoding[f"images/s a core, {crops}"]
    show(results, _JSON.value)
