import types

import pytest

from rar_jax.config import CheckpointConfig
from rar_jax.errors import UserError
from rar_jax.training.evaluators.evaluator import Measure, Schedule, best_measure


def kept(metric, every=5):
    return CheckpointConfig(every=every, best_metric=metric)


@pytest.mark.parametrize(("every", "expected"), [(3, [3, 6, 7]), (0, [7])])
def test_due_every_few_steps_and_at_the_last(every, expected):
    assert [step for step in range(1, 8) if Schedule(every, 7).due(step)] == expected


def test_the_measure_of_the_best_checkpoint():
    loss, accuracy = Measure("loss", "Loss", "", False), Measure("accuracy", "Accuracy", "", True)
    during = types.SimpleNamespace(measures=(loss,), schedule=Schedule(5, 10))
    at_the_end = types.SimpleNamespace(measures=(accuracy,), schedule=Schedule(0, 10))
    assert best_measure(kept("loss"), [during, at_the_end]) is loss
    assert best_measure(kept(""), [during]) is None
    with pytest.raises(UserError, match=r"best_metric='accuracy' is not measured in this run: it must be loss$"):
        best_measure(kept("accuracy"), [during, at_the_end])
    with pytest.raises(UserError, match=r"it must be empty, as none is \(see config\.data\.eval_path and"):
        best_measure(kept("loss"), [at_the_end])


@pytest.mark.parametrize(("every", "fits"), [(5, True), (1, True), (10, True), (4, False), (15, True)])
def test_the_best_checkpoint_is_measured_at_the_steps_that_are_saved(every, fits):
    loss = Measure("loss", "Loss", "", False)
    during = types.SimpleNamespace(measures=(loss,), schedule=Schedule(5, 100))
    if fits:
        assert best_measure(kept("loss", every), [during]) is loss
    else:
        with pytest.raises(UserError, match=r"is measured every 5 steps, and config\.checkpoint\.every=4: one must be"):
            best_measure(kept("loss", every), [during])
