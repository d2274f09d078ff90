import math

import pytest

from rar_jax.images import row_plots
from rar_jax.images.plots import Line, save_figure
from rar_jax.images.row_plots import Bars, Curves, plot_rows


def test_rows_are_drawn_from_the_top_with_their_error_bars(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        row_plots, "save_figure", lambda figure, path: figures.append(figure) or save_figure(figure, path)
    )
    bars = [
        Bars("one", [1.0, 3.0], [0.5, 0.0], [[0.9, 1.1], [3.0]]),
        # The second row has no such score.
        Bars("two", [2.0, math.nan], [0.1, 0.0], [[2.0], []]),
    ]
    lines = [Line([(1, 2.0), (2, 1.0)], "first"), Line([], "empty")]
    plot_rows(tmp_path / "rows.png", "title", ["first", "second"], {"losses": bars}, [Curves("curves", "step", lines)])
    assert (tmp_path / "rows.png").stat().st_size > 5000
    losses, curves = figures[0].axes
    assert [label.get_text() for label in losses.get_yticklabels()] == ["first", "second"]
    low, high = losses.get_ylim()
    assert low > high
    one, two = losses.containers
    assert list(one.lines[0].get_xdata()) == [1, 3] and list(one.lines[0].get_ydata()) == pytest.approx([-0.125, 0.875])
    assert list(two.lines[0].get_ydata()) == pytest.approx([0.125, 1.125])
    segment = one.lines[2][0].get_segments()[0]
    assert [point[0] for point in segment] == [0.5, 1.5]
    assert [line.get_label() for line in curves.lines] == ["first", "empty"]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["first", "empty"]
