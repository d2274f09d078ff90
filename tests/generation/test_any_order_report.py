import json
import types

import pytest

from rar_jax.errors import UserError
from rar_jax.evaluation.intervals import mean_of
from rar_jax.generation import any_order_report
from rar_jax.generation.any_order import Decoding, Grid
from rar_jax.generation.any_order_report import measure, plot_steps, summarise

ONE, GROUPS = (Decoding("any", "none", "random", "uniform", steps, False, 0) for steps in (16, 4))
RASTER = ONE._replace(model="raster", scan_order="row_major")


def found():
    fids = {ONE: (10.0, 14.0), GROUPS: (15.0, 15.0), RASTER: (8.0, 8.0)}
    return {
        cell._replace(seed=seed): {"frechet_pixels": fid, "svm_accuracy": 0.5}
        for cell, pair in fids.items()
        for seed, fid in enumerate(pair)
    }


def test_nothing_to_measure_is_refused(tmp_path):
    """One token per pass needs no verification."""
    nothing = types.SimpleNamespace(
        decodings=lambda grid: [], verified_decodings=lambda grid: [], completions=lambda grid: [],
        classifications=lambda grid: [], decode=None, complete=None, classify=None, num=1, labels=[0],
    )  # fmt: skip
    with pytest.raises(UserError, match="--sections=verify has nothing to measure with --steps=16"):
        measure(nothing, Grid(["random"], [16], ["none"], 1), ["verify"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sections_that_are_not_measured_again_are_kept(tmp_path, monkeypatch):
    """Unless they are of another model or another number of images."""
    monkeypatch.setattr(
        any_order_report, "measure_cells", lambda path, plan, cells, *rest: {each: {} for each in cells}
    )
    monkeypatch.setattr(any_order_report, "_plan", lambda *arguments: {})
    subject = types.SimpleNamespace(
        decodings=lambda grid: [], verified_decodings=lambda grid: [ONE], completions=lambda grid: [],
        classifications=lambda grid: [GROUPS], decode=None, complete=None, classify=None, num=1, labels=[0],
        num_tokens=16, name="model-1",
    )  # fmt: skip
    grid = Grid(["random"], [16], ["none"], 1)
    for section in ("verify", "classification"):
        measure(subject, grid, [section], tmp_path)
    assert {"verify", "classification"} < json.loads((tmp_path / "orders.json").read_text()).keys()
    for name, num in (("model-2", 1), ("model-2", 2)):
        subject.name, subject.num = name, num
        measure(subject, grid, ["verify"], tmp_path)
        assert "classification" not in json.loads((tmp_path / "orders.json").read_text())
        measure(subject, grid, ["classification"], tmp_path)


def test_rows_have_means_over_seeds_and_ratios_to_one_token_a_pass():
    rows = summarise(found(), 16)
    assert [row["steps"] for row in rows] == [16, 4, 16] and "seed" not in rows[0]
    assert rows[0]["frechet_pixels"] == mean_of([10.0, 14.0]) and rows[0]["frechet_pixels"].mean == 12
    assert [row["ratio"] for row in rows] == [1, 15 / 12, 1]
    without = {cell: values for cell, values in found().items() if cell.steps == 4}
    assert "ratio" not in summarise(without, 16)[0]


def test_the_plot_has_a_line_for_each_order_and_schedule_and_a_level_for_the_other_model(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(any_order_report, "plot_scores_by_steps", lambda path, score, panels: drawn.append(panels))
    cosine = {GROUPS._replace(schedule="cosine"): {"frechet_pixels": 20.0, "svm_accuracy": 0.5}}
    plot_steps(tmp_path / "a.png", summarise(found() | cosine, 16), "any", 16)
    ((title, curves),) = drawn[0].items()
    assert title == "guidance none"
    # One token per pass belongs to both schedules.
    assert {curve.label: curve.points for curve in curves} == {
        "random, uniform": [(4, 15), (16, 12)],
        "random, cosine": [(4, 20), (16, 12)],
        "raster, row_major, one token per pass": [(4, 8), (16, 8)],
    }
    assert curves[0].half_widths == pytest.approx([0, 25.412], rel=1e-4)
