"""Groups of tokens that are drawn from one pass of the network: their sizes, and passes of equal shape."""

from typing import NamedTuple

import numpy as np

SCHEDULES = ("uniform", "cosine")

# Padding the groups to a few widths keeps the number of compiled loops small.
_MAX_WIDTHS = 4


def group_sizes(schedule: str, num_tokens: int, steps: int) -> tuple[int, ...]:
    """Returns the sizes of the groups of a schedule.

    uniform divides T into nearly equal parts. cosine begins with small groups: after pass i of N,
    round(T (1 - cos(pi i / 2N))) tokens are drawn, and each pass draws at least one.

    Args:
      schedule: one of `SCHEDULES`.
      num_tokens: T.
      steps: N, the number of groups, from 1 to T; 0 means one token a group.
    """
    if steps in (0, num_tokens):
        return (1,) * num_tokens
    passes = np.arange(steps + 1)
    if schedule == "uniform":
        drawn = num_tokens * passes // steps
    else:
        drawn = np.round(num_tokens * (1 - np.cos(np.pi * passes / (2 * steps)))).astype(int)
        # At least one token per pass, and at least one left for each pass to come.
        for i in range(1, steps):
            drawn[i] = min(max(drawn[i], drawn[i - 1] + 1), num_tokens - (steps - i))
    return tuple(np.diff(drawn).tolist())


class Plan(NamedTuple):
    """How the tokens of an image are divided into passes. A program is compiled for each plan.

    Attributes:
      sizes: the sizes of the groups, which sum to T.
      drawn_order: random or spread, if each image has an order of its own; None if the order is given.
      verify: whether drafted tokens are verified (`sampling.own_pace`). The groups then have one size, but the last can
        be smaller.
    """

    sizes: tuple[int, ...]
    drawn_order: str | None = None
    verify: bool = False


class Segment(NamedTuple):
    """Consecutive passes of one shape, which run as one compiled loop.

    Attributes:
      counts: int [P], the tokens visited before the group that each pass reads.
      sizes: int [P], the size of that group.
      width: the number of tokens to which the groups that are read and drawn are padded.
      length: the places that the cache needs.
    """

    counts: np.ndarray
    sizes: np.ndarray
    width: int
    length: int


def _widths(sizes: np.ndarray) -> np.ndarray:
    """Returns a width for each group, at least its size, never falling, with at most `_MAX_WIDTHS` different values."""
    widths = np.maximum.accumulate(sizes)
    parts = np.array_split(np.unique(widths), min(_MAX_WIDTHS, len(np.unique(widths))))
    allowed = np.array([part[-1] for part in parts])
    return allowed[np.searchsorted(allowed, widths)]


def segments(sizes: tuple[int, ...], bounds: list[int]) -> list[Segment]:
    """Divides the passes that read a group and draw the next one into segments.

    A new segment begins where the width changes, and where the number of tokens drawn passes a bound, so that the cache
    can grow.

    Args:
      sizes: the sizes of all groups.
      bounds: numbers of tokens, rising, at which the cache may grow.
    """
    sizes = np.asarray(sizes)
    counts = np.cumsum(sizes) - sizes
    # Pass n reads group n and draws group n + 1, which is at least as wide.
    widths = _widths(sizes)[1:]
    stages = np.searchsorted(bounds, counts[1:], side="right")
    found, start = [], 0
    for end in range(1, len(widths) + 1):
        if end < len(widths) and (widths[end], stages[end]) == (widths[start], stages[start]):
            continue
        width = int(widths[start])
        # The last pass writes 2 * width - 1 rows from place counts + 2.
        length = int(counts[end - 1]) + 2 * width + 1
        found.append(Segment(counts[start:end], sizes[start:end], width, length))
        start = end
    return found
