import numpy as np
import pytest

from rar_jax.sampling.guidance import guidance_weights, guide


@pytest.mark.parametrize(
    ("size", "scale", "power"),
    [("rar_b", 16.0, 2.75), ("rar_l", 15.5, 2.5), ("rar_xl", 6.9, 1.5), ("rar_xxl", 8.0, 1.2)],
)
def test_golden(size, scale, power, golden_json):
    expected = golden_json("schedules.json")[f"guidance/{size}"]
    np.testing.assert_allclose(guidance_weights("pow_cosine", 256, scale, power), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [1, 1 + 2 * (1 - 0.5**0.5) / 2, 2, 1 + 2 * (1 + 0.5**0.5) / 2]),
        ("linear", [1, 1.5, 2, 2.5]),
        ("constant", [3, 3, 3, 3]),
    ],
)
def test_schedules_by_hand(schedule, expected):
    np.testing.assert_allclose(guidance_weights(schedule, 4, 3.0, 7.0), expected, rtol=1e-6)


def test_no_guidance_is_none():
    assert guidance_weights("pow_cosine", 64, 1.0, 2.0) is None
    assert guidance_weights("none", 64, 4.0, 2.0) is None


def test_guide_extrapolates():
    conditional, unconditional = np.array([1.0, 2.0]), np.array([0.5, 3.0])
    np.testing.assert_allclose(guide(conditional, unconditional, 1.0), conditional)
    np.testing.assert_allclose(guide(conditional, unconditional, 3.0), [2.0, 0.0])
