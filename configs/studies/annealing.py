"""Table 2 of the paper: the 15 windows of annealing, scaled to 100 epochs. Random training samples in random orders."""

from rar_jax.schema import config_beside
from rar_jax.studies.plan import RANDOM, TARGET, Row, Study

# Start and end in percent of the run (in the paper, of 400 epochs) -> the paper's FID.
WINDOWS = {
    (0, 0): 3.08, (0, 25): 2.68, (0, 50): 2.41, (0, 75): 2.40, (0, 100): 2.43,
    (25, 25): 2.48, (25, 50): 2.28, (25, 75): 2.33, (25, 100): 2.39,
    (50, 50): 2.39, (50, 75): 2.18, (50, 100): 2.55,
    (75, 75): 2.41, (75, 100): 2.74,
    (100, 100): 3.01,
}  # fmt: skip
# What differs for raster order in the best trial of configs/studies/setting.py.
RASTER = {"model.dropout": 0.4, "model.attention_dropout": 0.4}


def get_study():
    base = config_beside(__file__, "../digits_long.py")
    rows = [
        Row(
            f"{start}-{end}",
            {"permutation.anneal_start_epoch": start, "permutation.anneal_end_epoch": end}
            | (RASTER if end == 0 else {}),
            paper=fid,
            orders=(RANDOM,) if start == 100 else (TARGET,),
        )
        for (start, end), fid in WINDOWS.items()
    ]
    return Study(
        base,
        rows,
        title="Annealing windows in percent of 100 epochs on the digits (Table 2 of the paper)",
    )
