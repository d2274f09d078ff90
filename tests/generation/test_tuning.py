import pytest

from rar_jax.errors import UserError
from rar_jax.generation.tuning import Candidates, Setting, Tuning
from rar_jax.sampling.options import Options


def test_a_setting_is_written_as_flags_of_sample():
    assert Setting(2.5, 1.0, 1.02).flags() == "--guidance_scale=2.5 --guidance_power=1 --temperature=1.02"


def test_the_best_setting_depends_on_the_score():
    values = {Setting(1, 1, 1): 0.5, Setting(2, 1, 1): 0.9, Setting(3, 1, 1): 0.7}
    assert Tuning("frechet_glyphs", False, values).best == (1, 1, 1)
    assert Tuning("glyph_accuracy", True, values).best == (2, 1, 1)


@pytest.mark.parametrize(
    ("flag", "numbers", "message"),
    [
        ("guidance_scales", [1, -1], "--guidance_scales: guidance_scale=-1 must be at least 0"),
        ("guidance_powers", [0], "--guidance_powers: guidance_power=0 must be above 0"),
        ("temperatures", [-0.5], "--temperatures: temperature=-0.5 must be at least 0"),
        ("temperatures", [float("nan")], "--temperatures: temperature=nan must be at least 0"),
        ("guidance_scales", [float("inf")], "--guidance_scales: guidance_scale=inf must be at least 0 and below inf"),
    ],
)
def test_values_out_of_range_are_refused(flag, numbers, message):
    with pytest.raises(UserError, match=message):
        Candidates(**{flag: numbers})
    Candidates(**{flag: [0.5, 2]})


def test_each_combination_is_tried_once():
    settings = Candidates([3, 1, 2, 2], [1, 0.5], [1]).settings(Options())
    # A scale of 1 is no guidance, whatever the power.
    assert settings == [(1, 0.5, 1), (2, 0.5, 1), (2, 1, 1), (3, 0.5, 1), (3, 1, 1)]


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
    assert settings == [(scale, power, 1.0) for scale in scales for power in (powers[:1] if scale == 1 else powers)]
    given = Candidates(guidance_powers=[3.0])
    if guidance == "pow_cosine":
        assert {setting.guidance_power for setting in given.settings(options)} == {3}
    else:
        with pytest.raises(UserError, match=f"--guidance_powers=3 changes nothing with .*guidance={guidance}"):
            given.settings(options)
