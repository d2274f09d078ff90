import numpy as np
import pytest

from rar_jax.config import sample_options
from rar_jax.orders import scan_order
from rar_jax.training.program import make_program


def test_the_fields_of_a_config_reach_the_step_and_the_sampler(small_config):
    """The epochs of the config are 89 steps each."""
    config = small_config(
        permutation={"scan_order": "spiral_in", "final_randomness": 0.2, "shape": "cosine"},
        train={"label_dropout": 0.3, "accumulation": 2, "ema_decay": 0.9},
    )
    program = make_program(config)
    step = program.step_config
    np.testing.assert_array_equal(step.scan_order, scan_order("spiral_in", 8))
    assert (step.seed, step.label_dropout, step.accumulation, step.ema_decay) == (config.seed, 0.3, 2, 0.9)
    # r falls over the second epoch, and the learning rate rises over the first.
    randomness = [float(program.schedules(n)["r"]) for n in (89, 111, 178)]
    assert randomness == pytest.approx([1, 0.2 + 0.8 * (1 - np.cos(np.pi * 67 / 89)) / 2, 0.2])
    rates = [float(program.learning_rate(n)) for n in (0, 89, 267)]
    assert rates == pytest.approx([0, config.optimizer.learning_rate, config.optimizer.end_learning_rate])
    assert sample_options(config).scan_order == "spiral_in"
