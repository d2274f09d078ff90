"""Dropout, learning rate and weight decay for raster order and for RAR, each with the same ten trials."""

import itertools

from rar_jax.schema import config_beside
from rar_jax.studies.plan import Row, Study

METHODS = {"raster": (0, 0), "RAR": (50, 75)}
# Dropout, learning rate, weight decay.
TRIALS = (*itertools.product((0.1, 0.2, 0.3, 0.4), (1e-3, 3e-3), (0.03,)), (0.2, 3e-3, 0.3), (0.5, 1e-3, 0.03))


def get_study():
    base = config_beside(__file__, "../digits_long.py")
    rows = [
        Row(
            f"{method}, {dropout:g}, {rate:g}, {decay:g}",
            {
                "permutation.anneal_start_epoch": start,
                "permutation.anneal_end_epoch": end,
                "model.dropout": dropout,
                "model.attention_dropout": dropout,
                "optimizer.learning_rate": rate,
                "optimizer.weight_decay": decay,
            },
        )
        for dropout, rate, decay in TRIALS
        for method, (start, end) in METHODS.items()
    ]
    return Study(
        base,
        rows,
        title="Settings for raster order and for RAR on the digits, 100 epochs: dropout, learning rate, weight decay",
        seeds=1,
        choosing=True,
        compare="validation_end",
        columns=("validation_end", "validation_best", "best_step"),
    )
