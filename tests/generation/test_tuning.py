import json

import pytest

from rar_jax.generation.tuning import FILE, Candidates, Setting, search
from rar_jax.progress import Progress
from rar_jax.sampling.options import Options


def bowl(setting, on_batch):
    on_batch(10)
    return {"fid": (setting.guidance_scale - 2) ** 2 + (setting.guidance_power - 1) ** 2 + setting.temperature}


def test_a_search_resumes_where_it_was_stopped(tmp_path, monkeypatch):
    settings = Candidates([3, 1, 2, 2], [1, 0.5], [1]).settings(Options())
    assert len(settings) == 6 and settings[0] == (1, 0.5, 1)
    tried = []

    def stops(setting, on_batch):
        if len(tried) == 4:
            raise KeyboardInterrupt
        tried.append(setting)
        return bowl(setting, on_batch)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "new", {"images": 10}, settings, 10, stops)
    path = tmp_path / "new" / FILE
    # The process was killed while it wrote the last line.
    path.write_text(path.read_text()[:-9])
    scored, updates = [], []
    monkeypatch.setattr(Progress, "update", lambda self, images, note="": updates.append(images))

    def scores(setting, on_batch):
        scored.append(setting)
        return bowl(setting, on_batch)

    found = search(tmp_path / "new", {"images": 10}, settings, 10, scores)
    assert scored == settings[3:]
    # The progress is updated within a setting and after it.
    assert updates == [10, 0] * 3
    assert found == {setting: bowl(setting, lambda _: None) for setting in settings}
    assert min(found, key=lambda setting: found[setting]["fid"]) == (2, 1, 1)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 7
    # A field that the earlier plan lacks counts as different.
    with pytest.raises(
        ValueError, match=r"--out=.*new was started with images=10, not 20, seed=None, not 1: use the same settings"
    ):
        search(tmp_path / "new", {"images": 20, "seed": 1}, settings, 20, bowl)
    with pytest.raises(
        ValueError, match=r"was started with images=10, not None: use the same settings, or choose another"
    ):
        search(tmp_path / "new", {}, settings, 10, bowl)


def test_a_setting_is_written_as_flags_of_sample():
    assert Setting(2.5, 1.0, 1.02).flags() == "--guidance_scale=2.5 --guidance_power=1 --temperature=1.02"


@pytest.mark.parametrize(
    ("flag", "numbers", "message"),
    [
        ("guidance_scales", [1, -1], "--guidance_scales: -1 must be at least 0"),
        ("guidance_powers", [0], "--guidance_powers: 0 must be above 0"),
        ("temperatures", [-0.5], "--temperatures: -0.5 must be at least 0"),
        ("temperatures", [float("nan")], "--temperatures: nan must be at least 0"),
        ("guidance_scales", [float("inf")], "--guidance_scales: inf must be at least 0, and finite"),
    ],
)
def test_values_out_of_range_are_refused(flag, numbers, message):
    with pytest.raises(ValueError, match=message):
        Candidates(**{flag: numbers})
    Candidates(**{flag: [0.5, 2]})


@pytest.mark.parametrize(
    ("guidance", "scales", "powers"),
    [
        ("pow_cosine", [1, 1.5, 2, 2.5, 3], [0.5, 0.75, 1, 1.25, 1.5]),
        ("linear", [1, 1.5, 2, 2.5, 3], [1]),
        ("none", [2], [1]),
    ],
)
def test_only_options_that_change_the_samples_are_tried(guidance, scales, powers):
    options = Options(guidance=guidance, guidance_scale=2.0, guidance_power=1.0)
    settings = Candidates().settings(options)
    assert settings == [(scale, power, 1.0) for scale in scales for power in powers]
    given = Candidates(guidance_powers=[3.0])
    if guidance == "pow_cosine":
        assert {setting.guidance_power for setting in given.settings(options)} == {3}
    else:
        with pytest.raises(ValueError, match=f"--guidance_powers=3 changes nothing with .*guidance={guidance}"):
            given.settings(options)
