import numpy as np
import pytest
from PIL import Image

from rar_jax.images.plots import plot_curves, plot_heat_maps, plot_runs, plot_scan_orders


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


def picture(path):
    return np.asarray(Image.open(path))


def test_curves_have_panels_for_scores(tmp_path):
    entries = [{"step": s, "score/fid_guided": 30.0 - s, "score/fid_unguided": 50.0 - s} for s in range(3)]
    plot_curves(tmp_path / "without.png", [], (2, 5))
    plot_curves(tmp_path / "with.png", entries, (2, 5))
    assert picture(tmp_path / "with.png").shape[0] > picture(tmp_path / "without.png").shape[0]


def test_runs_on_one_page(tmp_path):
    runs = {name: [{"step": s, "train/loss": end - s / 10} for s in range(5)] for name, end in (("a", 3), ("b", 2))}
    for count in (1, 2):
        plot_runs(tmp_path / f"{count}.png", dict(list(runs.items())[:count]))
    one, two = (picture(tmp_path / f"{count}.png") for count in (1, 2))
    orange = np.array([255, 127, 14])
    assert [(np.abs(page[..., :3].astype(int) - orange).max(axis=2) < 10).sum() > 50 for page in (one, two)] == [
        False,
        True,
    ]


def test_heat_maps_frame_the_smallest(tmp_path):
    values = {(s, p, t): (s - 2) ** 2 + p + t for s in (1, 2, 3) for p in (1, 2) for t in (1, 1.1)}
    del values[(3, 2, 1.1)]
    plot_heat_maps(tmp_path / "a.png", ("scale", "power", "temperature"), values, "FID")
    crimson = (np.abs(picture(tmp_path / "a.png")[..., :3].astype(int) - [220, 20, 60]).max(axis=2) < 10).nonzero()
    # In the first of the two maps, and in its left half.
    assert 20 < len(crimson[1]) and crimson[1].max() < picture(tmp_path / "a.png").shape[1] / 2
