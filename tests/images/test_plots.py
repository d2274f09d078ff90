import itertools

import numpy as np
import pytest
from PIL import Image

from rar_jax.images import plots
from rar_jax.images.plots import (
    Curve,
    Line,
    Panel,
    plot_heat_maps,
    plot_panels,
    plot_scan_orders,
    plot_scores_by_steps,
    save_figure,
)  # fmt: skip
from rar_jax.orders import SCAN_ORDERS, scan_order


@pytest.mark.parametrize(("side", "missing"), [(8, []), (6, ["z_curve", "subsample"])])
def test_scan_orders(tmp_path, monkeypatch, side, missing):
    """Each panel of the figure and of the PNG shows its own order, or the reason why there is none."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure) or save_figure(figure, path))
    plot_scan_orders(tmp_path / "figures" / "orders.png", side)
    panels = {axis.get_title(): axis for axis in figures[0].axes if axis.get_title()}
    assert list(panels) == list(SCAN_ORDERS)
    page = read_png(tmp_path / "figures" / "orders.png")[..., :3]
    seen = {}
    for name, axis in panels.items():
        if name in missing:
            assert not axis.lines and "power" in " ".join(text.get_text() for text in axis.texts)
            continue
        column, row = axis.lines[0].get_data()
        np.testing.assert_array_equal(row * side + column, scan_order(name, side))
        # The colours of the marks follow the order.
        np.testing.assert_array_equal(axis.collections[0].get_array(), np.arange(side**2))
        left, bottom, right, top = axis.get_position().extents
        rows, columns = (np.array([1 - top, 1 - bottom]) * page.shape[0], np.array([left, right]) * page.shape[1])
        seen[name] = page[slice(*rows.astype(int)), slice(*columns.astype(int))]
    height, width = np.min([panel.shape[:2] for panel in seen.values()], axis=0)
    for one, other in itertools.combinations(seen.values(), 2):
        assert (one[:height, :width] != other[:height, :width]).any(axis=2).mean() > 0.01


def read_png(path):
    return np.asarray(Image.open(path))


def pixels_like(page, color):
    return (np.abs(page[..., :3].astype(int) - color).max(axis=2) < 10).sum()


def test_panels_draw_their_lines(tmp_path):
    line = Line([(0, 1.0), (10, 2.0)], "a line", "tab:orange")
    for name, panels in {
        "empty": [Panel("title", [])],
        "full": [Panel("title", [line])],
        "three": [Panel("title", [line])] * 3,
    }.items():
        plot_panels(tmp_path / f"{name}.png", panels, shaded=("window", (2, 10**6)))
    empty, full, three = (read_png(tmp_path / f"{name}.png") for name in ("empty", "full", "three"))
    assert empty.shape == full.shape and three.shape[0] > full.shape[0]
    orange = np.array([255, 127, 14])
    assert pixels_like(empty, orange) == 0
    assert pixels_like(full, orange) > 200
    assert pixels_like(three, orange) > 2 * pixels_like(full, orange)


def test_a_legend_for_all_panels(tmp_path):
    for name, legend in (("without", None), ("with", {"run": "#ff7f0e"})):
        plot_panels(tmp_path / f"{name}.png", [Panel("title", [Line([], color="tab:orange")])], legend=legend)
    orange = np.array([255, 127, 14])
    assert [pixels_like(read_png(tmp_path / f"{name}.png"), orange) > 20 for name in ("without", "with")] == [
        False,
        True,
    ]


def test_heat_maps_frame_the_best(tmp_path):
    values = {(s, p, t): (s - 2) ** 2 + p + t for s in (1, 2, 3) for p in (1, 2) for t in (1, 1.1)}
    del values[(3, 2, 1.1)]
    plot_heat_maps(tmp_path / "a.png", ("scale", "power", "temperature"), values, min(values, key=values.get), "FID")
    crimson = (np.abs(read_png(tmp_path / "a.png")[..., :3].astype(int) - [220, 20, 60]).max(axis=2) < 10).nonzero()
    # The frame is in the first of the two maps.
    assert 20 < len(crimson[1]) and crimson[1].max() < read_png(tmp_path / "a.png").shape[1] / 2


def test_a_figure_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    plot_panels(tmp_path / "a.png", [Panel("title", [])])
    before = (tmp_path / "a.png").read_bytes()

    def full(self, file, **options):
        file.write(b"half")
        raise OSError("no space")

    monkeypatch.setattr(plots.plt.Figure, "savefig", full)
    with pytest.raises(OSError, match="no space"):
        plot_panels(tmp_path / "a.png", [Panel("other", [])])
    assert (tmp_path / "a.png").read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["a.png"]


def test_a_score_is_drawn_against_steps_with_error_bars(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure) or save_figure(figure, path))
    curve = Curve([(4, 3.0), (16, 2.0)], "random", "tab:orange", half_widths=[0.5, 0.1])
    plot_scores_by_steps(tmp_path / "a.png", "FID", {"guided": [curve], "unguided": [curve, curve]})
    left, right = figures[0].axes
    assert (left.get_title(), left.get_ylabel(), left.get_xscale()) == ("guided", "FID", "log")
    assert len(left.containers) == 1 and len(right.containers) == 2
    line, _, (bars,) = left.containers[0].lines
    assert line.get_xydata().tolist() == [[4, 3], [16, 2]]
    assert [bar[:, 1].tolist() for bar in bars.get_segments()] == [[2.5, 3.5], [1.9, 2.1]]
    assert pixels_like(read_png(tmp_path / "a.png"), np.array([255, 127, 14])) > 200
