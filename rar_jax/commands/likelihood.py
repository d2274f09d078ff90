"""Computes the log-likelihood of images under a model, and classifies them by Bayes' rule.

    python -m rar_jax likelihood --checkpoint=runs/digits_any_order --orders=8 --classify
    python -m rar_jax likelihood --checkpoint=RUN --images=FOLDER_OF_CLASS_FOLDERS

Without --images or --records it reads the run's held-out records. All devices of the machine share each batch, and one
batch of images is in memory. It prints a table and writes likelihood.json and likelihood.png, with a histogram and the
mean of each position.
"""

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from absl import flags
from etils import epath

from rar_jax.commands import cli, shared_flags
from rar_jax.data.datasets import open_heldout, open_records
from rar_jax.data.records import HostBatch
from rar_jax.data.sources import ClassFolders, check_outside
from rar_jax.data.token_batches import evenly_spaced, image_batches, record_batches
from rar_jax.errors import UserError
from rar_jax.files import write_atomically
from rar_jax.generate import Generator, load
from rar_jax.generation.likelihood import summarise
from rar_jax.generation.pictures import samples_folder
from rar_jax.images.plots import plot_likelihoods
from rar_jax.progress import Progress

_CHECKPOINT = shared_flags.define_checkpoint()
_TOKENIZER = shared_flags.define_model_tokenizer()
_STEP = shared_flags.define_step()
_IMAGES = flags.DEFINE_string(
    "images", None, "Folder of class folders, each named by a class of the model, its index or its WordNet id."
)
_RECORDS = flags.DEFINE_string("records", None, "Folder of token records. Default: the run's held-out records.")
_NUM = flags.DEFINE_integer("num", None, "Number of images, evenly spaced over all. Default: all.", 1)
_ORDERS = flags.DEFINE_integer("orders", 0, "Number of random orders of each image; 0 is the run's scan order.", 0)
_CLASSIFY = flags.DEFINE_bool("classify", False, "Also compute the probability of each class, and the accuracy.")
_OUT = shared_flags.define_out("results")
_SEED = shared_flags.define_seed("the random orders")
_BATCH = shared_flags.define_batch_size(done="whose likelihood is computed")


class _Images(NamedTuple):
    """The images to read: the tokens of `batches(size)` come from `count` images."""

    count: int
    batches: Callable[[int], Iterator[HostBatch]]


def _folder(generator: Generator, folder: str) -> _Images:
    source = ClassFolders(folder)
    labels = generator.labels(source.class_names)
    places = evenly_spaced(_NUM.value or len(source), len(source))

    def batches(size):
        for batch in image_batches(source, places, generator.tokenizer, size):
            yield batch | {"label": labels[batch["label"]]}

    return _Images(len(places), batches)


def _records(generator: Generator, folder: str | None) -> _Images:
    config, tokenizer = generator.config, generator.tokenizer
    records = open_records(config, tokenizer, folder) if folder else open_heldout(config, tokenizer)
    if records is None:
        raise UserError("the run has no held-out records: name some with --records=FOLDER, or --images=FOLDER")
    places = evenly_spaced(_NUM.value or records.num_records, records.num_records)
    return _Images(len(places), lambda size: record_batches(records, places, size))


def main(argv):
    del argv
    cli.keep_compiled_programs()
    out = shared_flags.results_folder(_CHECKPOINT.value, _OUT.value, samples_folder)
    if _IMAGES.value and _RECORDS.value:
        raise UserError("name one of --images and --records, not both")
    for holder in (_IMAGES, _RECORDS):
        if holder.value and not epath.Path(holder.value).is_dir():
            raise UserError(f"--{holder.name}={holder.value}: there is no such folder")
    if _IMAGES.value:
        check_outside(_IMAGES.value, "--out", out)
    generator = load(_CHECKPOINT.value, _STEP.value, _TOKENIZER.value)
    images = _folder(generator, _IMAGES.value) if _IMAGES.value else _records(generator, _RECORDS.value)
    passes = max(1, _ORDERS.value) * (1 + generator.config.model.num_classes * _CLASSIFY.value)
    progress = Progress("likelihood", images.count * passes, unit="image")
    scorer = generator.likelihood_scorer(
        images.count, _ORDERS.value, seed=_SEED.value, batch_size=_BATCH.value, on_batch=progress.update
    )
    found = summarise(scorer, images.batches(scorer.batch_size), _CLASSIFY.value)
    progress.close()
    num_tokens = len(found.positions)
    results = {
        "images": images.count,
        "orders": _ORDERS.value,
        "nats per image, mean over orders": float(-found.mean.mean()),
        "nats per token, mean over orders": float(-found.mean.mean() / num_tokens),
        "nats per token, mixture of orders": float(-found.mixture.mean() / num_tokens),
    }
    if found.accuracy is not None:
        results["accuracy by Bayes' rule"] = found.accuracy
    for name, value in results.items():
        print(f"{name:<34}{value:>12,.4f}" if isinstance(value, float) else f"{name:<34}{value:>12,}")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "likelihood.json", json.dumps(results, indent=2) + "\n")
    plot_likelihoods(out / "likelihood.png", -found.mean / num_tokens, -found.positions)
    print(f"{out / 'likelihood.json'}, {out / 'likelihood.png'}")
