import numpy as np
import pytest
import scipy.stats

from rar_jax.evaluation.intervals import mean_of


def test_the_interval_is_student_s():
    values = [1.0, 2.0, 4.0]
    found = mean_of(values)
    # The 97.5% quantile of Student's t with two degrees of freedom is 4.30265; the standard error is sqrt(7/3 / 3).
    assert found.mean == pytest.approx(7 / 3)
    assert found.half_width == pytest.approx(4.30265 * np.sqrt(7 / 9), rel=1e-5)
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert found.values == (1, 2, 4)


def test_a_single_measurement_has_no_interval():
    assert mean_of([2.0]) == (2.0, None, (2.0,))
