import json
import os
from typing import NamedTuple

import pytest

from rar_jax.errors import UserError
from rar_jax.generation.cells import measure_cells
from rar_jax.progress import Progress


class Setting(NamedTuple):
    guidance_scale: float
    guidance_power: float


def bowl(setting, on_batch):
    on_batch(10)
    return {"fid": (setting.guidance_scale - 2) ** 2 + (setting.guidance_power - 1) ** 2}


def test_two_processes_do_not_measure_the_same_cells(tmp_path):
    def measure(setting, on_batch):
        with pytest.raises(UserError, match=rf"process .+:{os.getpid()} measures there; stop it, or choose another"):
            measure_cells(tmp_path / "grid.jsonl", {}, [Setting(1.0, 1.0)], 10, bowl)
        # Another section of the same folder is other work.
        measure_cells(tmp_path / "other.jsonl", {}, [Setting(1.0, 1.0)], 10, bowl)
        return bowl(setting, on_batch)

    assert len(measure_cells(tmp_path / "grid.jsonl", {}, [Setting(1.0, 1.0), Setting(2.0, 1.0)], 10, measure)) == 2


def test_a_grid_resumes_where_it_was_stopped(tmp_path, monkeypatch):
    settings = [Setting(scale, power) for scale in (1.0, 2.0, 3.0) for power in (0.5, 1.0)]
    tried, path = [], tmp_path / "new" / "grid.jsonl"

    def stops(setting, on_batch):
        if len(tried) == 4:
            raise KeyboardInterrupt
        tried.append(setting)
        return bowl(setting, on_batch)

    with pytest.raises(KeyboardInterrupt):
        measure_cells(path, {"images": 10}, settings, 10, stops)
    # The process was killed while it wrote the last line.
    path.write_text(path.read_text()[:-9])
    scored, updates = [], []
    monkeypatch.setattr(Progress, "update", lambda self, images, note="": updates.append(images))

    def scores(setting, on_batch):
        scored.append(setting)
        return bowl(setting, on_batch)

    found = measure_cells(path, {"images": 10}, settings, 10, scores)
    assert scored == settings[3:]
    # The progress is updated within a setting and after it.
    assert updates == [10, 0] * 3
    assert found == {setting: bowl(setting, lambda _: None) for setting in settings}
    assert min(found, key=lambda setting: found[setting]["fid"]) == (2, 1)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 7
    # A field that the earlier plan lacks counts as different.
    with pytest.raises(
        UserError, match=r"--out=.*new was started with images=10, not 20, seed=None, not 1: use the same settings"
    ):
        measure_cells(path, {"images": 20, "seed": 1}, settings, 20, bowl)
    with pytest.raises(
        UserError, match=r"was started with images=10, not None: use the same settings, or choose another"
    ):
        measure_cells(path, {}, settings, 10, bowl)
