import json

import numpy as np
import pytest

from rar_jax.training.evaluations import FILE, Evaluations
from rar_jax.training.evaluators.evaluator import Measure, Result, Schedule
from rar_jax.training.metrics import MetricsLog, read_metrics
from rar_jax.training.preemption import Preempted, Preemption


class Counter:
    """An evaluator that measures how often it has run."""

    def __init__(self, name, every, raises=False):
        self.name, self.schedule, self.raises = name, Schedule(every, 20), raises
        self.measures = (Measure(f"{name}/runs", "Runs", "", True),)
        self.runs = 0
        self.seen = []

    def run(self, step, params, measured, preemption):
        if self.raises:
            raise Preempted
        self.runs += 1
        self.seen.append(dict(measured))
        return Result({f"{self.name}/runs": float(self.runs)})


class Pictures:
    """An evaluator that draws an image and measures nothing."""

    name, measures, schedule = "pictures", (), Schedule(10, 20)
    runs = 0

    def run(self, step, params, measured, preemption):
        self.runs += 1
        return Result(pictures={"dots": np.zeros((2, 2, 3), np.uint8)})


def opened(folder, step, *evaluators):
    log = MetricsLog(folder, step)
    return log, Evaluations(folder, step, evaluators, log)


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_each_evaluator_runs_when_it_is_due_and_sees_what_was_measured_before(tmp_path):
    first, second, pictures = Counter("first", 5), Counter("second", 0), Pictures()
    _, evaluations = opened(tmp_path, 0, first, second, pictures)
    assert [step for step in range(1, 21) if evaluations.due(step)] == [5, 10, 15, 20]
    for step in (5, 10, 20):
        evaluations.run(step, {}, Preemption())
        assert not evaluations.due(step)
    assert (first.runs, second.runs, pictures.runs) == (3, 1, 2)
    assert second.seen == [{"first/runs": 3.0}]
    assert evaluations.measured(20) == {"first/runs": 3.0, "second/runs": 1.0} and evaluations.measured(15) == {}
    assert lines(tmp_path)[:3] == [
        {"step": 5, "evaluator": "first"},
        {"step": 10, "evaluator": "first"},
        {"step": 10, "evaluator": "pictures"},
    ]
    assert (tmp_path / "dots" / "step_00000010.png").exists()


def test_an_interrupted_evaluation_is_done_after_the_restart_and_none_twice(tmp_path):
    first, second = Counter("first", 10), Counter("second", 10, raises=True)
    log, evaluations = opened(tmp_path, 0, first, second)
    with pytest.raises(Preempted):
        evaluations.run(10, {}, Preemption())
    log.close()
    evaluations.close()
    first, second = Counter("first", 10), Counter("second", 10)
    _, evaluations = opened(tmp_path, 10, first, second)
    assert evaluations.measured(10) == {"first/runs": 1.0}
    assert evaluations.due(10)
    evaluations.run(10, {}, Preemption())
    assert (first.runs, second.runs) == (0, 1)
    assert second.seen == [{"first/runs": 1.0}]
    assert read_metrics(tmp_path) == [{"step": 10, "first/runs": 1.0}, {"step": 10, "second/runs": 1.0}]


def test_evaluations_after_the_step_of_the_checkpoint_are_dropped(tmp_path):
    pictures = Pictures()
    log, evaluations = opened(tmp_path, 0, pictures)
    evaluations.run(10, {}, Preemption())
    evaluations.run(20, {}, Preemption())
    log.close()
    evaluations.close()
    _, again = opened(tmp_path, 10, pictures)
    assert not again.due(10) and again.due(20)
    assert lines(tmp_path) == [{"step": 10, "evaluator": "pictures"}]


def test_values_that_were_logged_without_a_record_are_not_measured_again(tmp_path):
    """A process can be killed between the log and the record, and older versions had no record."""
    MetricsLog(tmp_path, 0).write(10, {"first/runs": 7.0})
    _, evaluations = opened(tmp_path, 10, Counter("first", 10))
    assert not evaluations.due(10) and evaluations.measured(10) == {"first/runs": 7.0}
