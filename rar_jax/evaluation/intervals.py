"""Means of repeated measurements with confidence intervals."""

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
