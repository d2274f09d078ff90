import dataclasses

import numpy as np
import pytest
import scipy.stats
from running import tiny_study

from rar_jax.performance.costs import train_flops
from rar_jax.studies.plan import CURVES, Row, cells_of
from rar_jax.studies.report import (
    _curves,
    differences,
    means,
    rank_correlation,
    report_lines,
    scores_by_row,
    write_report,
)

VALUES = {"a": [1.0, 1.2, 1.1, 1.3], "b": [1.1, 1.25, 1.25, 1.32], "c": [2.0, 2.4, 2.1, 2.2]}
STUDY = dataclasses.replace(
    tiny_study(),
    rows=[
        Row("a", {}, paper=3.0),
        Row("b", {"model.depth": 2}, paper=2.5),
        Row("c", {"model.depth": 3}, paper=2.0),
        Row("none", {"model.depth": 4}),
    ],
    columns=("loss_end",),
)


def cell(row, seed, value):
    curves = {"heldout/target_loss": [[1, 2.0], [2, value]], "train/target_loss": [[1, 2.0], [2, 1.0]]}
    return {"row": row, "seed": seed, "scores": {"loss_end": value}, "curves": curves}


def cells():
    found = [cell(row, seed, value) for row, values in VALUES.items() for seed, value in enumerate(values)]
    # The last seed of a row failed.
    return [*found[:-1], {"row": "c", "seed": 3, "error": "NonFiniteError: step 3"}]


def test_differences_from_the_best_row_are_tested_by_pairs():
    scores = scores_by_row(STUDY, cells())
    assert "none" not in scores and means(scores, "loss_end")["a"].mean == pytest.approx(1.15)

    def p_value(row, count):
        gap = np.subtract(VALUES[row][:count], VALUES["a"][:count])
        statistic = gap.mean() / (gap.std(ddof=1) / np.sqrt(count))
        return 2 * scipy.stats.t.sf(abs(statistic), count - 1)

    # The pairs of c are the three seeds that it finished. Holm doubles the smaller of two p-values.
    b, c = p_value("b", 4), p_value("c", 3)
    assert c < b
    assert differences(scores, "loss_end") == pytest.approx({"b": max(2 * c, b), "c": 2 * c})
    # No finished cell has this score yet.
    assert differences(scores, "random_frechet") == {}


def test_the_order_of_the_rows_is_compared_with_the_paper():
    scores = scores_by_row(STUDY, cells())
    # The loss rises from a to c, and the paper's FID falls.
    assert rank_correlation(STUDY, scores, "loss_end") == (pytest.approx(-1), 3)
    assert rank_correlation(STUDY, {"a": scores["a"]}, "loss_end") is None


def test_the_table_and_the_figure(tmp_path):
    lines = write_report(STUDY, cells_of(STUDY), cells(), tmp_path)
    assert (tmp_path / "table.txt").read_text() == "\n".join(lines) + "\n"
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert lines == report_lines(STUDY, scores_by_row(STUDY, cells()))
    row = next(line for line in lines if line.startswith("c "))
    # 12.71 / sqrt(3) would be for two seeds; 4.303 is Student's t for three.
    half_width = 4.30265 * np.std(VALUES["c"][:3], ddof=1) / np.sqrt(3)
    assert row.split()[:5] == ["c", "3", "2.167", "±", f"{half_width:.2g}"]
    assert "Rank correlation of the loss at the end with the paper's FID: -1.00, 3 rows." in lines


def test_sizes_are_also_compared_by_flops():
    panels = {
        (panel.title, panel.over): panel for panel in _curves(cells_of(STUDY), scores_by_row(STUDY, cells()), cells())
    }
    title = CURVES["train/target_loss"]
    (steps, flops), config = (panels[title, x].lines[1] for x in ("step", "FLOPs")), cells_of(STUDY)[1].config
    assert steps.label == "b" and config.model.depth == 2
    of_step = config.train.batch_size * train_flops(config.model)
    assert flops.points == [(step * of_step, value) for step, value in steps.points]
    # Losses of held-out images are drawn against steps only.
    assert (CURVES["heldout/target_loss"], "FLOPs") not in panels
