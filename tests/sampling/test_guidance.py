import numpy as np
import pytest

from rar_jax.sampling.guidance import guide, pow_cosine_weights


@pytest.mark.parametrize(
    ("size", "scale", "power"),
    [("rar_b", 16.0, 2.75), ("rar_l", 15.5, 2.5), ("rar_xl", 6.9, 1.5), ("rar_xxl", 8.0, 1.2)],
)
def test_golden(size, scale, power, golden_json):
    expected = golden_json("schedules.json")[f"guidance/{size}"]
    np.testing.assert_allclose(pow_cosine_weights(256, scale, power), expected, rtol=1e-5)


def test_scale_one_is_no_guidance():
    np.testing.assert_array_equal(pow_cosine_weights(64, 1.0, 2.0), np.ones(64))


def test_power_must_be_positive():
    with pytest.raises(ValueError, match="guidance_power 0"):
        pow_cosine_weights(64, 2.0, 0)


def test_guide_extrapolates():
    conditional, unconditional = np.array([1.0, 2.0]), np.array([0.5, 3.0])
    np.testing.assert_allclose(guide(conditional, unconditional, 1.0), conditional)
    np.testing.assert_allclose(guide(conditional, unconditional, 3.0), [2.0, 0.0])
