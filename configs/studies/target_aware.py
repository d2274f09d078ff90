"""Figure 3 of the paper: target-aware embeddings. Annealed and random training, with and without the embeddings."""

from rar_jax.schema import config_beside
from rar_jax.studies.plan import RANDOM, TARGET, Row, Study

# Start and end of the annealing in epochs of 100.
WINDOWS = {"annealed": (50, 75), "random": (100, 100)}


def get_study():
    base = config_beside(__file__, "../digits_long.py")
    # The base had these values when this study was trained.
    base.optimizer.update(warmup_epochs=5, weight_decay=0.03)
    rows = [
        Row(
            f"{name}, {'with' if target_aware else 'without'}",
            {
                "permutation.anneal_start_epoch": start,
                "permutation.anneal_end_epoch": end,
                "model.target_aware": target_aware,
            },
            orders=(TARGET, RANDOM),
        )
        for name, (start, end) in WINDOWS.items()
        for target_aware in (True, False)
    ]
    return Study(
        base,
        rows,
        title="Target-aware embeddings on the digits (Figure 3 of the paper)",
        seeds=3,
        compare="random_loss_end",
        columns=(
            "loss_end", "random_loss_end", "random_loss_best", "frechet", "frechet_guided", "random_frechet",
            "random_frechet_guided", "accuracy", "random_accuracy", "nearest", "random_nearest",
        ),
    )  # fmt: skip
