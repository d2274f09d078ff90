"""The protocol of evaluators: what each measures, when it is due, and what it returns."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rar_jax.config import CheckpointConfig
from rar_jax.errors import UserError
from rar_jax.training.preemption import Preemption


@dataclasses.dataclass(frozen=True)
class Measure:
    """A value that an evaluator measures.

    Attributes:
      name: the name under which the value is logged and by which `config.checkpoint.best_metric` selects it.
      title: the quantity and its unit. Measures with the same title are drawn in one panel.
      label: what distinguishes the measure from others with the same title.
      larger_is_better: the direction of improvement.
    """

    name: str
    title: str
    label: str
    larger_is_better: bool


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The steps at which an evaluator is due: the last step, and every `every` steps unless that is 0."""

    every: int
    last_step: int

    def due(self, step: int) -> bool:
        """Returns whether the evaluator is due at a step."""
        return step == self.last_step or (self.every > 0 and step % self.every == 0)


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of one evaluation.

    Attributes:
      values: name -> value, for all measures of the evaluator; the same in every process.
      pictures: name -> uint8 [H, W, 3]; empty in all processes but the first.
    """

    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Evaluator(Protocol):
    """Evaluates the parameters of a step.

    Attributes:
      name: identifies the evaluator in the record of completed evaluations.
      measures: all values that it measures.
      schedule: the steps at which it is due.
    """

    name: str
    measures: tuple[Measure, ...]
    schedule: Schedule

    def run(self, step: int, params: dict[str, Any], measured: Mapping[str, float], preemption: Preemption) -> Result:
        """Evaluates the parameters of a step. All processes call this at the same steps.

        Args:
          step: number of updates done.
          params: the parameters to evaluate and sample with.
          measured: the values that other evaluators have measured at this step.
          preemption: checked between batches.

        Raises:
          Preempted: the run was asked to end. The evaluation is repeated after the restart.
        """


def best_measure(config: CheckpointConfig, evaluators: Sequence[Evaluator]) -> Measure | None:
    """Returns the measure that selects the best checkpoint, or None without `best_metric`.

    Args:
      config: which checkpoints are saved and kept.
      evaluators: the run's evaluators. Those that run at the last step alone cannot select a checkpoint.

    Raises:
      UserError: no evaluator measures the metric during the run, or neither its interval nor that of the
        checkpoints is a multiple of the other.
    """
    metric = config.best_metric
    if not metric:
        return None
    during = [each for each in evaluators if each.schedule.every]
    measures = {measure.name: (measure, each.schedule.every) for each in during for measure in each.measures}
    if metric not in measures:
        choices = ", ".join(measures) or "empty, as none is (see config.data.eval_path and config.eval.score_every)"
        raise UserError(f"config.checkpoint.best_metric={metric!r} is not measured in this run: it must be {choices}")
    measure, every = measures[metric]
    if every % config.every and config.every % every:
        raise UserError(
            f"config.checkpoint.best_metric={metric!r} is measured every {every} steps, and "
            f"config.checkpoint.every={config.every}: one must be a multiple of the other"
        )
    return measure
