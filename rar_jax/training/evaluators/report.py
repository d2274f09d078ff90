"""Writes the report of a run on the digits or the glyphs, which compares its samples with the real images."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from rar_jax.config import Config
from rar_jax.data.records import TokenRecords
from rar_jax.data.tokenizers import Tokenizer
from rar_jax.evaluation.digits import digits_report
from rar_jax.evaluation.glyphs import glyph_report
from rar_jax.files import warn_of_os_errors, write_atomically
from rar_jax.parallel.distributed import from_first, is_first
from rar_jax.sampling.sampler import interleaved_labels, spread_classes
from rar_jax.training.evaluators.evaluator import Measure, Result, Schedule
from rar_jax.training.evaluators.sampling import StepSampler
from rar_jax.training.preemption import Preemption

# The batch size if no sample grid is drawn.
_BATCH_SIZE = 128
_FILE = "report.json"


class _Report:
    """Scores samples against the real images after the last step, prints the scores and writes report.json."""

    name = "report"
    measures: tuple[Measure, ...]

    def __init__(self, config: Config, sampler: StepSampler, tokenizer: Tokenizer, folder: epath.Path):
        """Scores `config.eval.report_samples` samples, equally many of each class; writes into the run's `folder`."""
        self.schedule = Schedule(0, config.last_step)
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._folder = folder
        self._labels = interleaved_labels(config.eval.report_samples, config.model.num_classes)
        # This is the batch size of the sample grid, so that the decode loop is compiled once for both.
        grid = len(spread_classes(config.model.num_classes)) * config.eval.samples_per_class
        self._batch_size = grid or _BATCH_SIZE

    def run(self, step: int, params: dict[str, Any], measured: Mapping[str, float], preemption: Preemption) -> Result:
        """Evaluates a step; see `Evaluator.run`. The held-out losses of this step must have been measured."""
        tokens = self._sampler.tokens(params, self._labels, self._batch_size, preemption.check)
        scores = {}
        if is_first():
            scores = self._scores(self._tokenizer.decode(tokens), self._labels)
            losses = {name: measured[f"heldout/{name}"] for name in ("target_loss", "random_loss")}
            text = json.dumps({"step": step} | losses | scores, indent=2) + "\n"
            with warn_of_os_errors():
                write_atomically(self._folder / _FILE, text)
            print(
                f"held-out loss, target order: {losses['target_loss']:.4f} nats per token (random order: "
                f"{losses['random_loss']:.4f})\n{self._summary(scores)}"
            )
        return Result({f"report/{name}": value for name, value in from_first(scores).items()})

    def _scores(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Returns the scores of samples, in the order of `measures`."""
        raise NotImplementedError

    def _summary(self, scores: dict[str, float]) -> str:
        """Returns a text about the scores."""
        raise NotImplementedError


_SVM_TITLE = "Digits recognised as their class"
_FRECHET_TITLE = "Frechet distance of pixels to the held-out digits"


class DigitsReport(_Report):
    """The report of the digits."""

    measures = (
        Measure("report/svm_accuracy_samples", _SVM_TITLE, "samples", True),
        Measure("report/svm_accuracy_heldout", _SVM_TITLE, "held-out digits", True),
        Measure("report/frechet_samples", _FRECHET_TITLE, "samples", False),
        Measure("report/frechet_train", _FRECHET_TITLE, "training digits", False),
    )

    def _scores(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return digits_report(images, labels)

    def _summary(self, scores: dict[str, float]) -> str:
        return (
            f"recognised as their class by an SVM trained on the real training digits: "
            f"{scores['svm_accuracy_samples']:.1%} of {len(self._labels)} samples, "
            f"{scores['svm_accuracy_heldout']:.1%} of the real held-out digits\n"
            f"Frechet distance of pixel statistics to the held-out digits: {scores['frechet_samples']:.1f} for the "
            f"samples, {scores['frechet_train']:.1f} for the real training digits"
        )


_ACCURACY_TITLE = "Glyphs recognised as their class"
_FEATURES_TITLE = "Frechet distance of features to the held-out glyphs"
_DISTANCE_TITLE = "Median distance to the nearest training image (grey levels)"


class GlyphReport(_Report):
    """The report of the glyphs, whose samples are also compared with the training images to detect copies."""

    measures = (
        Measure("report/glyph_accuracy_samples", _ACCURACY_TITLE, "samples", True),
        Measure("report/glyph_accuracy_heldout", _ACCURACY_TITLE, "held-out glyphs", True),
        Measure("report/frechet_samples", _FEATURES_TITLE, "samples", False),
        Measure("report/frechet_reconstructions", _FEATURES_TITLE, "their reconstructions", False),
        Measure("report/nearest_samples", _DISTANCE_TITLE, "samples", True),
        Measure("report/nearest_reconstructions", _DISTANCE_TITLE, "reconstructions of held-out glyphs", True),
    )

    def __init__(
        self, config: Config, sampler: StepSampler, tokenizer: Tokenizer, folder: epath.Path, heldout: TokenRecords
    ):
        """Takes the arguments of `_Report`, and the token records of the held-out glyphs."""
        super().__init__(config, sampler, tokenizer, folder)
        self._num_training, self._num_classes = config.data.num_images, config.model.num_classes
        self._heldout = heldout

    def _scores(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        count = min(len(labels), self._heldout.num_images)
        tokens = self._heldout.read(np.arange(count))["tokens"]
        return glyph_report(images, labels, self._tokenizer.decode(tokens), self._num_training, self._num_classes)

    def _summary(self, scores: dict[str, float]) -> str:
        return (
            f"recognised as their class by a classifier trained on real glyphs: "
            f"{scores['glyph_accuracy_samples']:.1%} of {len(self._labels)} samples, "
            f"{scores['glyph_accuracy_heldout']:.1%} of the real held-out glyphs\n"
            f"Frechet distance of the classifier's features to the held-out glyphs: {scores['frechet_samples']:.1f} "
            f"for the samples, {scores['frechet_reconstructions']:.1f} for reconstructions of held-out glyphs\n"
            f"median distance to the nearest training image: {scores['nearest_samples']:.1f} grey levels for the "
            f"samples, {scores['nearest_reconstructions']:.1f} for reconstructions of held-out glyphs"
        )
