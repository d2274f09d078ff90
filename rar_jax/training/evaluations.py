"""Evaluations along a run: which are due, what they measured, and the record of those that are done."""

from collections.abc import Sequence
from typing import Any

from etils import epath

from rar_jax.files import JsonLinesFile, read_json_lines, warn_of_write_errors
from rar_jax.images.files import write_png
from rar_jax.parallel.distributed import from_first, is_first
from rar_jax.training.evaluators.evaluator import Evaluator, Result
from rar_jax.training.metrics import MetricsLog, read_metrics
from rar_jax.training.preemption import Preemption

FILE = "evaluations.jsonl"


class Evaluations:
    """Runs the evaluators of a run when they are due, logs their results and records which are done.

    The record, evaluations.jsonl, has a line with the step and the evaluator for each evaluation that was logged. It is
    written by the first process and read when the run resumes, so that no evaluation is repeated or left out.
    """

    def __init__(self, run_folder: epath.PathLike, step: int, evaluators: Sequence[Evaluator], log: MetricsLog):
        """Opens the record of a run that resumes at `step` (0: a new run), and drops what came after that step.

        Args:
          run_folder: the run's folder.
          step: number of updates done.
          evaluators: the evaluators, in the order in which they run.
          log: receives the results. It must have been opened at the same step.
        """
        self._folder = epath.Path(run_folder)
        self._evaluators = evaluators
        self._log = log
        done, values = [], {}
        if is_first():
            lines = [line for line in read_json_lines(self._folder / FILE) if line["step"] <= step]
            self._lines = JsonLinesFile(self._folder / FILE, lines)
            done = [line["evaluator"] for line in lines if line["step"] == step]
            for entry in read_metrics(self._folder):
                if entry["step"] == step:
                    values |= entry
        done, values = from_first([done, values])
        self._step = step
        self._measured = {}
        for evaluator in evaluators:
            self._measured |= {each.name: values[each.name] for each in evaluator.measures if each.name in values}
        # A process can be killed after it logged the values and before it recorded the evaluation.
        logged = [each.name for each in evaluators if any(measure.name in values for measure in each.measures)]
        self._done = {*done, *logged}

    def due(self, step: int) -> bool:
        """Returns whether an evaluator is due at a step and was not run yet."""
        return bool(self._due(step))

    def _due(self, step: int) -> list[Evaluator]:
        done = self._done if step == self._step else ()
        return [each for each in self._evaluators if each.schedule.due(step) and each.name not in done]

    def measured(self, step: int) -> dict[str, float]:
        """Returns the values measured at a step, which must be the newest one."""
        return dict(self._measured) if step == self._step else {}

    def run(self, step: int, params: dict[str, Any], preemption: Preemption) -> None:
        """Runs the evaluators that are due at a step. All processes call this at the same steps.

        Raises:
          Preempted: the run was asked to end. The interrupted evaluation has logged nothing.
        """
        due = self._due(step)
        if step != self._step:
            self._step, self._measured, self._done = step, {}, set()
        for evaluator in due:
            result = evaluator.run(step, params, self._measured, preemption)
            self._record(evaluator.name, result)

    def _record(self, name: str, result: Result) -> None:
        for picture_name, picture in result.pictures.items():
            path = self._folder / picture_name / f"step_{self._step:08d}.png"
            with warn_of_write_errors(path):
                write_png(path, picture)
            self._log.write_image(self._step, picture_name, picture)
        if result.values:
            self._log.write(self._step, result.values)
        self._measured |= result.values
        self._done.add(name)
        if is_first():
            with warn_of_write_errors(self._lines.path):
                self._lines.add({"step": self._step, "evaluator": name})

    def flush(self) -> None:
        """Waits until the record is on the disk, or cannot be written; a warning says so."""
        if is_first():
            with warn_of_write_errors(self._lines.path):
                self._lines.flush()

    def close(self) -> None:
        """Flushes and closes the record."""
        if is_first():
            with warn_of_write_errors(self._lines.path):
                self._lines.close()
