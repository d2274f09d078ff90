"""Scan orders: fixed sequences in which the positions of an n x n grid are visited (Figure 6 of the paper)."""

import functools
from collections.abc import Callable

import numpy as np

from rar_jax.errors import UserError


def _row_major(n: int) -> np.ndarray:
    return np.arange(n * n)


def _alternate(n: int) -> np.ndarray:
    """Boustrophedon order: odd rows of the grid run from right to left."""
    grid = np.arange(n * n).reshape(n, n)
    grid[1::2] = grid[1::2, ::-1]
    return grid.ravel()


def _bits(values: np.ndarray, n: int) -> list[np.ndarray]:
    """Returns the log2(n) bits of each value, least significant first."""
    return [(values >> k) & 1 for k in range(n.bit_length() - 1)]


def _interleave(n: int, *, coarse_first: bool) -> np.ndarray:
    """Sorts positions by a code that interleaves their row and column bits.

    Each pair of bits has the row bit above the column bit. The pairs are taken from coarse to fine, or from fine to
    coarse.
    """
    row, column = np.divmod(np.arange(n * n), n)
    pairs = [2 * r + c for r, c in zip(_bits(row, n), _bits(column, n), strict=True)]
    code = np.zeros(n * n, np.int64)
    for pair in reversed(pairs) if coarse_first else pairs:
        code = 4 * code + pair
    return np.argsort(code)


def _z_curve(n: int) -> np.ndarray:
    """Morton order: finishes one quadrant before it begins the next."""
    return _interleave(n, coarse_first=True)


def _subsample(n: int) -> np.ndarray:
    """Recursive 2x2 subsampling: visits even/even, even/odd, odd/even and odd/odd positions, each by the same rule.

    This sorts by the Morton code with its bit pairs reversed, so that the finest pair decides first.
    """
    return _interleave(n, coarse_first=False)


def _spiral_out(n: int) -> np.ndarray:
    """Starts at (n/2, n/2 - 1) and goes one up, one right, two down, two left, three up, ... until the grid is full."""
    row, column = n // 2, n // 2 - 1
    visited = [row * n + column]
    directions = ((-1, 0), (0, 1), (1, 0), (0, -1))
    leg = 0
    while len(visited) < n * n:
        down, right = directions[leg % 4]
        for _ in range(min(leg // 2 + 1, n * n - len(visited))):
            row, column = row + down, column + right
            visited.append(row * n + column)
        leg += 1
    return np.array(visited)


def _spiral_in(n: int) -> np.ndarray:
    return _spiral_out(n)[::-1]


def _any_side(n: int) -> str | None:
    return None


def _power_of_two(n: int) -> str | None:
    return None if n & (n - 1) == 0 else "a side that is a power of two"


def _even(n: int) -> str | None:
    return None if n % 2 == 0 else "an even side"


# name -> (function from a side to the positions, function from a side to what it must be, or None if it is allowed)
_ORDERS: dict[str, tuple[Callable[[int], np.ndarray], Callable[[int], str | None]]] = {
    "row_major": (_row_major, _any_side),
    "spiral_in": (_spiral_in, _even),
    "spiral_out": (_spiral_out, _even),
    "z_curve": (_z_curve, _power_of_two),
    "subsample": (_subsample, _power_of_two),
    "alternate": (_alternate, _any_side),
}

SCAN_ORDERS = tuple(_ORDERS)


@functools.cache
def scan_order(name: str, side: int) -> np.ndarray:
    """Returns the positions of a side x side grid in the order visited.

    Args:
      name: one of `SCAN_ORDERS`, the names of the VQGAN code (Figure 6 of the RAR paper).
      side: grid side n, at least 1.

    Returns:
      int32 [n * n], read-only; entry k is the row-major position visited at step k.

    Raises:
      UserError: the name is unknown, or the order is not defined for this side.
    """
    if name not in _ORDERS:
        raise UserError(f"unknown scan order {name!r}: choose one of {', '.join(SCAN_ORDERS)}")
    if side < 1:
        raise UserError(f"grid side {side} must be at least 1")
    positions, requirement = _ORDERS[name]
    if needs := requirement(side):
        raise UserError(
            f"scan order {name!r} needs {needs}, but the grid side is {side}: choose row_major or alternate, "
            f"which work for every side, or another grid"
        )
    order = positions(side).astype(np.int32)
    order.setflags(write=False)
    return order
