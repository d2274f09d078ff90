"""Means of repeated measurements with confidence intervals, and tests of whether two of them differ."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

_CONFIDENCE = 0.95


class Mean(NamedTuple):
    """The mean of measurements with different seeds.

    Attributes:
      mean: the mean.
      half_width: half the width of its 95% confidence interval, or None for a single measurement.
      values: the measurements.
    """

    mean: float
    half_width: float | None
    values: tuple[float, ...]


def mean_of(values: Sequence[float]) -> Mean:
    """Returns the mean of independent measurements, with the interval of Student's t distribution."""
    count, half_width = len(values), None
    if count > 1:
        error = np.std(values, ddof=1) / np.sqrt(count)
        half_width = float(scipy.stats.t.ppf((1 + _CONFIDENCE) / 2, count - 1) * error)
    return Mean(float(np.mean(values)), half_width, tuple(values))


def paired_p_value(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Returns the p-value of the two-sided paired t-test: how likely such a difference is if the true means are equal.

    Args:
      values, others: measurements of two methods; those at the same place share a seed.

    Returns:
      The p-value, or None for fewer than two pairs.
    """
    differences = np.subtract(values, others)
    if len(differences) < 2:
        return None
    # The statistic is undefined if all differences are equal; equal measurements are no sign of a difference.
    if np.ptp(differences) == 0:
        return float(differences[0] == 0)
    return float(scipy.stats.ttest_rel(values, others).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for the number of tests (Holm, 1979), in the same order.

    If the values below a level are called significant, the probability of any false one is at most that level.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected
