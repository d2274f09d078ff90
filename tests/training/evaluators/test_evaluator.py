import types

import pytest

from rar_jax.errors import UserError
from rar_jax.training.evaluators.evaluator import Measure, Schedule, best_measure


@pytest.mark.parametrize(("every", "expected"), [(3, [3, 6, 7]), (0, [7])])
def test_due_every_few_steps_and_at_the_last(every, expected):
    assert [step for step in range(1, 8) if Schedule(every, 7).due(step)] == expected


def test_the_measure_of_the_best_checkpoint():
    loss, accuracy = Measure("loss", "Loss", "", False), Measure("accuracy", "Accuracy", "", True)
    during = types.SimpleNamespace(measures=(loss,), schedule=Schedule(5, 10))
    at_the_end = types.SimpleNamespace(measures=(accuracy,), schedule=Schedule(0, 10))
    assert best_measure("loss", [during, at_the_end]) is loss
    assert best_measure("", [during]) is None
    with pytest.raises(UserError, match=r"best_metric='accuracy' is not measured in this run: it must be loss$"):
        best_measure("accuracy", [during, at_the_end])
    with pytest.raises(UserError, match=r"it must be empty, as none is \(see config\.data\.eval_path and"):
        best_measure("loss", [at_the_end])
