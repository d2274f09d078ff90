"""Dropout, learning rate, weight decay and warm-up for raster order and for RAR, each with 18 trials."""

import itertools
from typing import NamedTuple

from rar_jax.schema import config_beside
from rar_jax.studies.plan import Row, Study


class Trial(NamedTuple):
    """Dropout, learning rate, weight decay, and warm-up in epochs of 100."""

    dropout: float
    rate: float
    decay: float = 0.03
    warmup: int = 5


WINDOWS = {"raster": (0, 0), "RAR": (50, 75)}
# The first search has the same trials for both.
FIRST = [Trial(*pair) for pair in itertools.product((0.1, 0.2, 0.3, 0.4), (1e-3, 3e-3))]
FIRST += [Trial(0.2, 3e-3, 0.3), Trial(0.5, 1e-3)]
# The second search has the paper's share of warm-up, and begins at the best dropout of the first.
DROPOUTS = {"raster": (0.3, 0.4), "RAR": (0.05, 0.1)}


def second(dropouts):
    trials = [Trial(*pair, warmup=25) for pair in itertools.product(dropouts, (1e-3, 2e-3))]
    best = dropouts[-1]
    decays = [Trial(best, 1e-3, decay, warmup=25) for decay in (0.3, 1.0, 3.0)]
    return [*trials, Trial(best, 5e-4, warmup=25), *decays]


def get_study():
    base = config_beside(__file__, "../digits_long.py")
    rows = [
        Row(
            f"{method}, {trial.dropout:g}, {trial.rate:g}, {trial.decay:g}, {trial.warmup}",
            {
                "permutation.anneal_start_epoch": start,
                "permutation.anneal_end_epoch": end,
                "model.dropout": trial.dropout,
                "model.attention_dropout": trial.dropout,
                "optimizer.learning_rate": trial.rate,
                "optimizer.weight_decay": trial.decay,
                "optimizer.warmup_epochs": trial.warmup,
            },
        )
        for method, (start, end) in WINDOWS.items()
        for trial in (*FIRST, *second(DROPOUTS[method]))
    ]
    return Study(
        base,
        rows,
        title="Settings for raster order and for RAR on the digits, 100 epochs: dropout, rate, weight decay, warm-up",
        seeds=1,
        choosing=True,
        compare="validation_end",
        columns=("validation_end", "validation_best", "best_step"),
    )
