"""Scores samples during training, with and without guidance (Figure 4 b and c of the paper)."""

import logging
from collections.abc import Mapping
from typing import Any

from rar_jax.config import Config
from rar_jax.data.tokenizers import Tokenizer, decoded
from rar_jax.evaluation.sample_scores import SampleScorer
from rar_jax.parallel.distributed import from_first, is_first
from rar_jax.sampling.sampler import interleaved_labels
from rar_jax.training.evaluators.evaluator import Measure, Result, Schedule
from rar_jax.training.evaluators.sampling import StepSampler
from rar_jax.training.preemption import Preemption

_log = logging.getLogger(__name__)

# Larger than a sample grid, because a small batch would leave accelerators idle.
_BATCH_SIZE = 256
# The sampling options that replace those of the config, with and without guidance.
_GUIDANCE = {"guided": {}, "unguided": {"guidance_scale": 1.0}}
# The scores of all `SampleScorer`s: title, and whether larger is better.
_SCORES = {
    "fid": ("FID of samples", False),
    "inception_score": ("Inception Score of samples", True),
    "frechet_pixels": ("Frechet distance of pixels of samples (not FID)", False),
    "svm_accuracy": ("Digits recognised as their class", True),
    "frechet_glyphs": ("Frechet distance of features of the glyphs' classifier (not FID)", False),
    "glyph_accuracy": ("Glyphs recognised as their class", True),
}
MEASURES = tuple(
    Measure(f"score/{score}_{guidance}", title, guidance, larger_is_better)
    for score, (title, larger_is_better) in _SCORES.items()
    for guidance in _GUIDANCE
)


class SampleScores:
    """Scores samples, equally many of each class: with the guidance of the config, and without."""

    name = "scores"

    def __init__(self, config: Config, sampler: StepSampler, tokenizer: Tokenizer, scorer: SampleScorer):
        """Scores `config.eval.score_images` samples each time. `scorer` may be prepared later."""
        self.schedule = Schedule(config.eval.score_every, config.last_step)
        names = {f"score/{score}_{guidance}" for score in scorer.names for guidance in _GUIDANCE}
        self.measures = tuple(measure for measure in MEASURES if measure.name in names)
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._scorer = scorer
        self._labels = interleaved_labels(config.eval.score_images, config.model.num_classes)

    def run(self, step: int, params: dict[str, Any], measured: Mapping[str, float], preemption: Preemption) -> Result:
        """Evaluates a step; see `Evaluator.run`. The first process scores and sends the scores to the others."""
        scores = {}
        for guidance, options in _GUIDANCE.items():
            tokens = self._sampler.tokens(params, self._labels, _BATCH_SIZE, preemption.check, **options)
            if is_first():
                images = decoded(self._tokenizer, tokens, lambda _: preemption.check_alone())
                found = self._scorer.score(images, self._labels)
                scores |= {f"{name}_{guidance}": value for name, value in found.items()}
        scores = from_first(scores)
        _log.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
        return Result({f"score/{name}": value for name, value in scores.items()})
