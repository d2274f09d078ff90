"""Measures what a model can do in any order: groups of tokens, verification, inpainting and classification.

    python -m rar_jax evaluate_orders --checkpoint=runs/digits_any_order --raster=runs/digits --out=FOLDER

It scores samples against the number of steps for each order and schedule, counts the tokens per pass with
verification, completes held-out images with half of their tokens masked, and classifies them by their likelihood. It
prints tables and writes orders.json and orders.png. The same command resumes measurements that were stopped.
"""

import numpy as np
from absl import flags

from rar_jax.commands import cli, shared_flags
from rar_jax.data.datasets import open_heldout
from rar_jax.errors import UserError
from rar_jax.evaluation.report import report_folder
from rar_jax.evaluation.sample_scores import DigitsScorer
from rar_jax.evaluation.tables import table
from rar_jax.generate import Generator, load
from rar_jax.generation.any_order import Grid, Subject
from rar_jax.generation.any_order_report import PICTURE, REPORT, SECTIONS, measure
from rar_jax.sampling.options import DRAWN_ORDERS

_CHECKPOINT = shared_flags.define_checkpoint()
_RASTER = flags.DEFINE_string("raster", None, "Checkpoint of a model to compare with, sampled in its scan order.")
_SECTIONS = flags.DEFINE_list("sections", [*SECTIONS], "Sections to measure.")
_STEPS = flags.DEFINE_list(
    "steps", [], "Numbers of passes that draw the T tokens of an image. Default: T, T/2, T/4, T/8 and T/16."
)
_ORDERS = flags.DEFINE_list("scan_orders", [], "Scan orders to sample in. Default: the run's, random and spread.")
_GUIDANCE = flags.DEFINE_list("guidance", [], "Guidance schedules to compare. Default: the run's, and none.")
_NUM = flags.DEFINE_integer("num", 1000, "Number of samples for each setting and seed.", lower_bound=2)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds, from 0. Two or more give confidence intervals.", 1)
_BATCH = shared_flags.define_batch_size(default=1000)
_OUT = flags.DEFINE_string("out", None, "Folder of the results. Default: evaluation/NAME beside the checkpoint.")

_TITLES = {
    "steps": "Score against steps",
    "verify": "Verified groups: tokens per pass of the network, and share of examined tokens accepted at each place",
    "inpainting": "Completions of held-out images, compared with the training images",
    "classification": "Classes of held-out images by likelihood (0 orders: the scan order)",
}


def _load(checkpoint: str) -> Generator:
    """Loads a model of the embedded digits, whose scores need no network trained elsewhere."""
    generator = load(checkpoint)
    if generator.config.data.name != "digits":
        raise UserError(
            f"{checkpoint} is a model of {generator.config.data.name!r}: only models of the digits can be scored"
        )
    return generator


def _subject() -> Subject:
    """Loads the models and the held-out images."""
    loaded = [_load(checkpoint) for checkpoint in (_CHECKPOINT.value, _RASTER.value) if checkpoint]
    generator = loaded[0]
    generator.warn_if_not_trained(generator.options(scan_order="random"))
    records = open_heldout(generator.config, generator.tokenizer)
    batch = records.read(np.arange(records.num_records))
    return Subject(
        generators={each.origin["model"]: each for each in loaded},
        scorer=DigitsScorer(),
        completion_scorer=DigitsScorer(reference="train"),
        tokens=batch["tokens"],
        labels=batch["label"],
        num=_NUM.value,
        batch_size=_BATCH.value,
    )


def main(argv):
    del argv
    cli.keep_compiled_programs()
    out = shared_flags.results_folder(_CHECKPOINT.value, _OUT.value, report_folder)
    if not _SECTIONS.value:
        raise UserError(f"--sections is empty: name some of {', '.join(SECTIONS)}")
    if unknown := [section for section in _SECTIONS.value if section not in SECTIONS]:
        raise UserError(f"--sections={','.join(unknown)} must be some of {', '.join(SECTIONS)}")
    steps = [*dict.fromkeys(cli.read_numbers(_STEPS, int, "64,16"))]
    if steps and min(steps) < 1:
        raise UserError(f"--steps={','.join(_STEPS.value)} must be at least 1")
    subject = _subject()
    options = subject.generators[subject.name].options()
    grid = Grid(
        scan_orders=[*dict.fromkeys(_ORDERS.value or [options.scan_order, *DRAWN_ORDERS])],
        steps=steps or [subject.num_tokens // size for size in (1, 2, 4, 8, 16)],
        guidance=[*dict.fromkeys(_GUIDANCE.value or [options.guidance, "none"])],
        seeds=_SEEDS.value,
    )
    results = measure(subject, grid, _SECTIONS.value, out)
    for section, rows in results.items():
        print(f"{_TITLES[section]}\n")
        print("\n".join(table(rows)) + "\n")
    print(
        f"Means over seeds and 95% intervals (verify: one seed); {_NUM.value:,} samples, or all held-out images, a seed"
    )
    print(f"{out / REPORT}" + (f", {out / PICTURE}" if "steps" in results else ""))
