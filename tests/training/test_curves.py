import numpy as np
from PIL import Image

from rar_jax.training import curves
from rar_jax.training.curves import plot_run, plot_runs


def picture(path):
    return np.asarray(Image.open(path))


def panels_of(monkeypatch, draw, *arguments):
    """Returns title -> lines of the panels that a function draws."""
    drawn = []
    monkeypatch.setattr(curves, "plot_panels", lambda path, panels, **_: drawn.extend(panels))
    draw("unused.png", *arguments)
    return {panel.title: panel.lines for panel in drawn}


def by_label(lines):
    return {line.label: line.points for line in lines}


def test_measures_of_one_title_share_a_panel(monkeypatch):
    entries = [{"step": 1, "train/loss": 3.0}, {"step": 2, "heldout/random_loss": 2.5, "train/target_loss": 2.0}]
    entries += [{"step": 2, "score/fid_guided": 9.0, "score/fid_unguided": 11.0}]
    panels = panels_of(monkeypatch, plot_run, entries, (2, 5))
    assert by_label(panels["Loss (nats per token)"]) == {
        "training batches, in their drawn orders": [(1, 3.0)],
        "held-out, target order": [],
        "held-out, random order": [(2, 2.5)],
        "training, target order": [(2, 2.0)],
        "training, random order": [],
    }
    assert by_label(panels["FID of samples"]) == {"guided": [(2, 9.0)], "unguided": [(2, 11.0)]}
    # Scores that were not logged have no panel.
    assert len(panels) == 5


def test_runs_are_compared_by_losses_and_logged_scores(monkeypatch):
    entry = {"step": 1, "train/loss": 3.0, "score/svm_accuracy_guided": 0.5, "score/glyph_accuracy_guided": 0.75}
    runs = {"a": [entry], "b": [{"step": 1}]}
    panels = panels_of(monkeypatch, plot_runs, runs)
    assert list(panels) == [
        "Loss of training batches, in their drawn orders (nats per token)",
        "Loss (nats per token): held-out, target order",
        "Loss (nats per token): held-out, random order",
        "Digits recognised as their class: guided, and dashed unguided",
        "Glyphs recognised as their class: guided, and dashed unguided",
    ]
    *_, digits, glyphs = ([line.points for line in lines if line.points] for lines in panels.values())
    assert (digits, glyphs) == ([[(1, 0.5)]], [[(1, 0.75)]])


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
