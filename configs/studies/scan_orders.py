"""Table 3 of the paper: the scan order to which training anneals."""

from rar_jax.schema import config_beside
from rar_jax.studies.plan import Row, Study

# Scan order -> the paper's FID.
ORDERS = {
    "row_major": 2.18,
    "spiral_in": 2.50,
    "spiral_out": 2.46,
    "z_curve": 2.29,
    "subsample": 2.39,
    "alternate": 2.48,
}


def get_study():
    base = config_beside(__file__, "../digits_long.py")
    rows = [Row(order, {"permutation.scan_order": order}, paper=fid) for order, fid in ORDERS.items()]
    return Study(
        base,
        rows,
        title="Scan order at the end of annealing on the digits (Table 3 of the paper)",
        seeds=3,
    )
