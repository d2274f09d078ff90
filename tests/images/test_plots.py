import numpy as np
import pytest
from PIL import Image

from rar_jax.images.plots import plot_curves, plot_scan_orders


@pytest.mark.parametrize("side", [8, 6])
def test_scan_orders(tmp_path, side):
    plot_scan_orders(tmp_path / "figures" / "orders.png", side)
    assert np.asarray(Image.open(tmp_path / "figures" / "orders.png")).std() > 10


def test_curves_draw_what_is_logged(tmp_path):
    entries = [{"step": s, "train/loss": 3 - s / 10, "train/learning_rate": 1e-3, "train/r": 1.0} for s in range(10)]
    plot_curves(tmp_path / "empty.png", [], (2, 5))
    plot_curves(tmp_path / "full.png", entries, (2, 5))
    empty, full = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("empty", "full"))
    assert empty.shape == full.shape
    assert (empty != full).any()
