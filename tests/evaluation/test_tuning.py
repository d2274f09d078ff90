import json

import pytest

from rar_jax.evaluation.tuning import FILE, Setting, grid, search


def bowl(setting):
    return {"fid": (setting.guidance_scale - 2) ** 2 + (setting.guidance_power - 1) ** 2 + setting.temperature}


def test_goes_on_where_it_was_stopped(tmp_path):
    settings = grid([3, 1, 2, 2], [1, 0.5], [1])
    assert len(settings) == 6 and settings[0] == (1, 0.5, 1)
    tried = []

    def stops(setting):
        if len(tried) == 4:
            raise KeyboardInterrupt
        tried.append(setting)
        return bowl(setting)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "new", {"images": 10}, settings, stops)
    path = tmp_path / "new" / FILE
    # As if killed in the middle of the last line.
    path.write_text(path.read_text()[:-9])
    again = []
    found = search(tmp_path / "new", {"images": 10}, settings, lambda setting: again.append(setting) or bowl(setting))
    assert again == settings[3:]
    assert found == {setting: bowl(setting) for setting in settings}
    assert min(found, key=lambda setting: found[setting]["fid"]) == (2, 1, 1)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 7
    with pytest.raises(ValueError, match=r"is of a search with images=10, not 20: choose another folder with --out"):
        search(tmp_path / "new", {"images": 20}, settings, bowl)


def test_flags_are_those_of_sample():
    assert Setting(2.5, 1.0, 1.02).flags() == "--guidance_scale=2.5 --guidance_power=1 --temperature=1.02"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (([-1], [1], [1]), "--guidance_scales: -1 must be at least 0"),
        (([1], [0], [1]), "--guidance_powers: 0 must be above 0"),
        (([1], [1], [-0.5]), "--temperatures: -0.5 must be at least 0"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        grid(*options)
