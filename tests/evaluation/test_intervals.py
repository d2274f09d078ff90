import numpy as np
import pytest
import scipy.stats

from rar_jax.evaluation.intervals import holm, mean_of, paired_p_value


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


def test_the_paired_test_is_that_of_the_differences():
    values, others = [1.0, 2.0, 4.0, 3.0], [0.5, 2.2, 3.0, 2.0]
    # The differences 0.5, -0.2, 1, 1 have the mean 0.575 and the standard deviation 0.5679.
    statistic = 0.575 / (0.567891 / 2)
    assert paired_p_value(values, others) == pytest.approx(2 * scipy.stats.t.sf(statistic, 3), rel=1e-5)
    # Student's t with one degree of freedom is Cauchy's distribution: P(|t| > 3) = 1 - 2 atan(3) / pi.
    assert paired_p_value([1.0, 2.0], [0.0, 0.0]) == pytest.approx(1 - 2 * np.arctan(3) / np.pi)
    assert paired_p_value([1.0], [2.0]) is None
    assert paired_p_value([1.0, 2.0], [1.0, 2.0]) == 1


def test_holm_s_correction():
    # By hand: 4 x 0.01, 3 x 0.015, 2 x 0.03 and 0.04, of which the last may not be below the one before it.
    assert holm([0.03, 0.01, 0.04, 0.015]) == pytest.approx([0.06, 0.04, 0.06, 0.045])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
