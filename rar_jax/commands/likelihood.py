"""Computes the log-likelihood of images under a model, and classifies them by Bayes' rule.

    python -m rar_jax likelihood --checkpoint=runs/digits_any_order --orders=8 --classify
    python -m rar_jax likelihood --checkpoint=RUN --images=FOLDER_OF_CLASS_FOLDERS

Without --images or --records it reads the run's held-out records. It prints a table and writes likelihood.json and
likelihood.png, with a histogram and the mean of each position.
"""

import json

import numpy as np
from absl import flags

from rar_jax.commands import cli, shared_flags
from rar_jax.data.class_names import class_names
from rar_jax.data.datasets import open_datasets
from rar_jax.data.pictures import center_square, read_picture
from rar_jax.data.records import TokenRecords
from rar_jax.data.sources import ClassFolders
from rar_jax.errors import UserError
from rar_jax.files import write_atomically
from rar_jax.generate import Generator, load
from rar_jax.generation.pictures import samples_folder
from rar_jax.images.plots import plot_likelihoods
from rar_jax.progress import Progress

_CHECKPOINT = shared_flags.define_checkpoint()
_TOKENIZER = shared_flags.define_model_tokenizer()
_STEP = shared_flags.define_step()
_IMAGES = flags.DEFINE_string("images", None, "Folder with a folder of images for each class of the model.")
_RECORDS = flags.DEFINE_string("records", None, "Folder of token records. Default: the run's held-out records.")
_NUM = flags.DEFINE_integer("num", None, "Number of images, the first ones. Default: all.", 1)
_ORDERS = flags.DEFINE_integer("orders", 0, "Number of random orders of each image; 0 is the run's scan order.", 0)
_CLASSIFY = flags.DEFINE_bool("classify", False, "Also compute the probability of each class, and the accuracy.")
_OUT = flags.DEFINE_string("out", None, "Folder of the results. Default: samples/ in the run's folder, or here.")
_SEED = shared_flags.define_seed()
_BATCH = shared_flags.define_batch_size()


def _read(generator: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images, or their tokens, and their labels."""
    if _IMAGES.value:
        source = ClassFolders(_IMAGES.value, class_names(generator.config))
        side = generator.tokenizer.grid_side * generator.tokenizer.downsampling
        read = [source[i].read() for i in range(min(_NUM.value or len(source), len(source)))]
        return np.stack([center_square(read_picture(data), side) for data, _ in read]), np.array([y for _, y in read])
    if _RECORDS.value:
        records = TokenRecords(_RECORDS.value)
    else:
        records = open_datasets(generator.config, generator.tokenizer).heldout
    if records is None:
        raise UserError("the run has no held-out records: name some with --records=FOLDER, or --images=FOLDER")
    batch = records.read(np.arange(min(_NUM.value or records.num_records, records.num_records)))
    return batch["tokens"], batch["label"]


def main(argv):
    del argv
    cli.keep_compiled_programs()
    out = shared_flags.results_folder(_CHECKPOINT.value, _OUT.value, samples_folder)
    generator = load(_CHECKPOINT.value, _STEP.value, _TOKENIZER.value)
    images, labels = _read(generator)
    arguments = {"orders": _ORDERS.value, "seed": _SEED.value, "batch_size": _BATCH.value}
    progress = Progress("likelihood", len(images) * max(1, _ORDERS.value), unit="image")
    found = generator.log_likelihood(images, [*labels], **arguments, on_batch=progress.update)
    progress.close()
    num_tokens = found.tokens.shape[1]
    results = {
        "images": len(images),
        "orders": _ORDERS.value,
        "nats an image, mean over orders": float(-found.mean.mean()),
        "nats a token, mean over orders": float(-found.mean.mean() / num_tokens),
        "nats a token, mixture of orders": float(-found.mixture.mean() / num_tokens),
    }
    if _CLASSIFY.value:
        predicted = generator.classify(images, **arguments).argmax(axis=1)
        results["accuracy by Bayes' rule"] = float((predicted == labels).mean())
    for name, value in results.items():
        print(f"{name:<34}{value:>12,.4f}" if isinstance(value, float) else f"{name:<34}{value:>12,}")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "likelihood.json", json.dumps(results, indent=2) + "\n")
    plot_likelihoods(out / "likelihood.png", -found.mean / num_tokens, -found.tokens.mean(axis=0))
    print(f"{out / 'likelihood.json'}, {out / 'likelihood.png'}")


if __name__ == "__main__":
    cli.run(main)
