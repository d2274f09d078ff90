"""How much randomness is enough if it is never annealed: r is constant, from raster order (0) to random order (1)."""

from rar_jax.schema import config_beside
from rar_jax.studies.plan import Row, Study

CONSTANTS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


def get_study():
    base = config_beside(__file__, "../digits_long.py")
    rows = [
        Row(
            f"{r:g}",
            {
                # A window of no length is over from the first step, and leaves r at its final value.
                "permutation.anneal_start_epoch": 0,
                "permutation.anneal_end_epoch": 0,
                "permutation.final_randomness": r,
            },
        )
        for r in CONSTANTS
    ]
    annealed = Row("annealed", {"permutation.anneal_start_epoch": 50, "permutation.anneal_end_epoch": 75})
    return Study(
        base,
        [*rows, annealed],
        title="Constant r against annealing on the digits, sampled in raster order",
        seeds=3,
    )
