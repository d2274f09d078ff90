"""What the paper leaves open: the shape of the annealing, and the window's position, when the mean of r is the same."""

from rar_jax.schema import config_beside
from rar_jax.studies.plan import Row, Study

# Label -> start and end in epochs of 100, the final value of r, and the shape. The mean of r is 0.625 in each.
SHAPES = {
    "25-100": (25, 100, 0.0, "linear"),
    "50-75": (50, 75, 0.0, "linear"),
    "62-63": (62, 63, 0.0, "linear"),
    "25-100, cosine": (25, 100, 0.0, "cosine"),
    "50-75, cosine": (50, 75, 0.0, "cosine"),
    "0-100, floor 0.25": (0, 100, 0.25, "linear"),
    "40-60, floor 0.25": (40, 60, 0.25, "linear"),
    "25-25, floor 0.5": (25, 25, 0.5, "linear"),
}


def get_study():
    base = config_beside(__file__, "../digits_long.py")
    rows = [
        Row(
            label,
            {
                "permutation.anneal_start_epoch": start,
                "permutation.anneal_end_epoch": end,
                "permutation.final_randomness": floor,
                "permutation.shape": shape,
            },
        )
        for label, (start, end, floor, shape) in SHAPES.items()
    ]
    return Study(
        base,
        rows,
        title="Shapes of the annealing with a mean r of 0.625 on the digits",
        seeds=3,
    )
