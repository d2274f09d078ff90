"""Writes the report of a run on the digits or the glyphs, which compares its samples with the real images."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from rar_jax.config import Config
from rar_jax.data.records import TokenRecords
from rar_jax.data.tokenizers import Tokenizer
from rar_jax.evaluation.digits import digits_report
from rar_jax.evaluation.glyphs import glyph_report
from rar_jax.files import warn_of_write_errors, write_atomically
from rar_jax.parallel.distributed import from_first, is_first
from rar_jax.sampling.sampler import interleaved_labels, spread_classes
from rar_jax.training.evaluators.evaluator import Measure, Result, Schedule
from rar_jax.training.evaluators.sampling import StepSampler
from rar_jax.training.preemption import Preemption

# The batch size if no sample grid is drawn.
_BATCH_SIZE = 128
_FILE = "report.json"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How samples are compared with the real images.

    Attributes:
      scores: the names of the scores.
      score: samples uint8 [N, H, W, 3] and labels int32 [N] -> the scores by name.
      summary: a format string of the scores and of count, the number of samples.
    """

    scores: tuple[str, ...]
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    summary: str


DIGITS = Comparison(
    ("svm_accuracy_samples", "svm_accuracy_heldout", "frechet_samples", "frechet_train"),
    digits_report,
    "recognised as their class by an SVM trained on the real training digits: {svm_accuracy_samples:.1%} of {count} "
    "samples, {svm_accuracy_heldout:.1%} of the real held-out digits\n"
    "Frechet distance of pixel statistics to the held-out digits: {frechet_samples:.1f} for the samples, "
    "{frechet_train:.1f} for the real training digits",
)


def glyph_comparison(config: Config, tokenizer: Tokenizer, heldout: TokenRecords) -> Comparison:
    """Returns how samples of glyphs are compared with real ones; the nearest training images show copies.

    Args:
      config: the run's config.
      tokenizer: decodes the held-out glyphs.
      heldout: the token records of the held-out glyphs.
    """

    def score(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        tokens = heldout.read(np.arange(min(len(labels), heldout.num_images)))["tokens"]
        reconstructions = tokenizer.decode(tokens)
        return glyph_report(images, labels, reconstructions, config.data.num_images, config.model.num_classes)

    return Comparison(
        (
            "glyph_accuracy_samples",
            "glyph_accuracy_heldout",
            "frechet_samples",
            "frechet_reconstructions",
            "nearest_samples",
            "nearest_reconstructions",
        ),
        score,
        "recognised as their class by a classifier trained on real glyphs: {glyph_accuracy_samples:.1%} of {count} "
        "samples, {glyph_accuracy_heldout:.1%} of the real held-out glyphs\n"
        "Frechet distance of the classifier's features to the held-out glyphs: {frechet_samples:.1f} for the samples, "
        "{frechet_reconstructions:.1f} for reconstructions of held-out glyphs\n"
        "median distance to the nearest training image: {nearest_samples:.1f} grey levels for the samples, "
        "{nearest_reconstructions:.1f} for reconstructions of held-out glyphs",
    )


class Report:
    """Scores samples against the real images after the last step, prints the scores and writes report.json."""

    name = "report"

    def __init__(
        self, config: Config, sampler: StepSampler, tokenizer: Tokenizer, folder: epath.Path, comparison: Comparison
    ):
        """Scores `config.eval.report_samples` samples, equally many of each class; writes into the run's `folder`."""
        self.schedule = Schedule(0, config.last_step)
        # What is measured at the last step alone is not drawn and selects no checkpoint.
        self.measures = tuple(Measure(f"report/{name}", "", "", True) for name in comparison.scores)
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._folder = folder
        self._comparison = comparison
        self._labels = interleaved_labels(config.eval.report_samples, config.model.num_classes)
        # This is the batch size of the sample grid, so that the decode loop is compiled once for both.
        grid = len(spread_classes(config.model.num_classes)) * config.eval.samples_per_class
        self._batch_size = grid or _BATCH_SIZE

    def run(self, step: int, params: dict[str, Any], measured: Mapping[str, float], preemption: Preemption) -> Result:
        """Evaluates a step; see `Evaluator.run`. The held-out losses of this step must have been measured."""
        tokens = self._sampler.tokens(params, self._labels, self._batch_size, preemption.check)
        scores = {}
        if is_first():
            scores = self._comparison.score(self._tokenizer.decode(tokens), self._labels)
            losses = {name: measured[f"heldout/{name}"] for name in ("target_loss", "random_loss")}
            text = json.dumps({"step": step} | losses | scores, indent=2) + "\n"
            with warn_of_write_errors(self._folder):
                write_atomically(self._folder / _FILE, text)
            print(
                f"held-out loss, target order: {losses['target_loss']:.4f} nats per token (random order: "
                f"{losses['random_loss']:.4f})\n"
                f"{self._comparison.summary.format(count=len(self._labels), **scores)}"
            )
        return Result({f"report/{name}": value for name, value in from_first(scores).items()})
