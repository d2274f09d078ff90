"""Draws grids of sampled images during training."""

from collections.abc import Mapping
from typing import Any

from rar_jax.config import Config
from rar_jax.data.tokenizers import Tokenizer
from rar_jax.images.files import image_grid
from rar_jax.parallel.distributed import is_first
from rar_jax.sampling.sampler import spread_classes
from rar_jax.training.evaluators.evaluator import Measure, Result, Schedule
from rar_jax.training.evaluators.sampling import StepSampler
from rar_jax.training.preemption import Preemption


class Samples:
    """Draws a grid of samples with one class per row, for up to ten evenly spaced classes."""

    name = "samples"
    measures: tuple[Measure, ...] = ()

    def __init__(self, config: Config, sampler: StepSampler, tokenizer: Tokenizer):
        """Draws `config.eval.samples_per_class` images of each class."""
        self.schedule = Schedule(config.eval.every, config.last_step)
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._per_class = config.eval.samples_per_class
        self._labels = spread_classes(config.model.num_classes).repeat(self._per_class)

    def run(self, step: int, params: dict[str, Any], measured: Mapping[str, float], preemption: Preemption) -> Result:
        """Evaluates a step; see `Evaluator.run`."""
        tokens = self._sampler.tokens(params, self._labels, len(self._labels), preemption.check)
        if not is_first():
            return Result()
        return Result(pictures={"samples": image_grid(self._tokenizer.decode(tokens), columns=self._per_class)})
