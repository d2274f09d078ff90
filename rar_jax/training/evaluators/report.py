"""Writes the report of a run on the digits, which compares its samples with the real digits."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from rar_jax.config import Config
from rar_jax.data.tokenizers import Tokenizer
from rar_jax.evaluation.digits import digits_report
from rar_jax.files import write_atomically
from rar_jax.parallel.distributed import from_first, is_first
from rar_jax.sampling.sampler import spread_classes
from rar_jax.training.evaluators.evaluator import Measure, Result, Schedule
from rar_jax.training.evaluators.sampling import StepSampler
from rar_jax.training.preemption import Preemption

# The batch size if no sample grid is drawn.
_BATCH_SIZE = 128
_FILE = "report.json"

_SVM_TITLE = "Digits recognised as their class"
_FRECHET_TITLE = "Frechet distance of pixels to the held-out digits"
MEASURES = (
    Measure("report/svm_accuracy_samples", _SVM_TITLE, "samples", True),
    Measure("report/svm_accuracy_heldout", _SVM_TITLE, "held-out digits", True),
    Measure("report/frechet_samples", _FRECHET_TITLE, "samples", False),
    Measure("report/frechet_train", _FRECHET_TITLE, "training digits", False),
)


class DigitsReport:
    """Scores samples against the real digits after the last step, prints the scores and writes report.json."""

    name = "report"
    measures = MEASURES

    def __init__(self, config: Config, sampler: StepSampler, tokenizer: Tokenizer, folder: epath.Path):
        """Scores `config.eval.report_samples` samples, equally many of each class; writes into the run's `folder`."""
        self.schedule = Schedule(0, config.last_step)
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._folder = folder
        self._labels = np.arange(config.eval.report_samples) % config.model.num_classes
        # This is the batch size of the sample grid, so that the decode loop is compiled once for both.
        grid = len(spread_classes(config.model.num_classes)) * config.eval.samples_per_class
        self._batch_size = grid or _BATCH_SIZE

    def run(self, step: int, params: dict[str, Any], measured: Mapping[str, float], preemption: Preemption) -> Result:
        """Evaluates a step; see `Evaluator.run`. The held-out losses of this step must have been measured."""
        tokens = self._sampler.tokens(params, self._labels, self._batch_size, preemption.check)
        scores = {}
        if is_first():
            scores = digits_report(self._tokenizer.decode(tokens), self._labels)
            losses = {name: measured[f"heldout/{name}"] for name in ("target_loss", "random_loss")}
            text = json.dumps({"step": step} | losses | scores, indent=2) + "\n"
            write_atomically(self._folder / _FILE, text)
            print(_summary(losses, scores, len(self._labels)))
        return Result({f"report/{name}": value for name, value in from_first(scores).items()})


def _summary(losses: dict[str, float], scores: dict[str, float], num_samples: int) -> str:
    return (
        f"held-out loss, target order: {losses['target_loss']:.4f} nats a token (random order: "
        f"{losses['random_loss']:.4f})\n"
        f"recognised as their class by an SVM trained on the real training digits: "
        f"{scores['svm_accuracy_samples']:.1%} of {num_samples} samples, "
        f"{scores['svm_accuracy_heldout']:.1%} of the real held-out digits\n"
        f"Frechet distance of pixel statistics to the held-out digits: {scores['frechet_samples']:.1f} for the "
        f"samples, {scores['frechet_train']:.1f} for the real training digits"
    )
