import numpy as np
import pytest

from rar_jax.errors import UserError
from rar_jax.orders import SCAN_ORDERS, scan_order


@pytest.mark.parametrize("side", [4, 8, 16])
@pytest.mark.parametrize("name", SCAN_ORDERS)
def test_golden(name, side, golden_json):
    expected = golden_json("orders.json")[str(side)]
    assert set(expected) == set(SCAN_ORDERS)
    np.testing.assert_array_equal(scan_order(name, side), expected[name])


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 6, 10, 12, 16, 31, 32])
@pytest.mark.parametrize("name", SCAN_ORDERS)
def test_is_a_permutation_or_refused(name, side):
    power_of_two, even = side & (side - 1) == 0, side % 2 == 0
    fits = {"z_curve": power_of_two, "subsample": power_of_two, "spiral_in": even, "spiral_out": even}.get(name, True)
    if not fits:
        with pytest.raises(UserError, match=rf"{name}.*grid side is {side}"):
            scan_order(name, side)
        return
    order = scan_order(name, side)
    np.testing.assert_array_equal(np.sort(order), np.arange(side**2))


@pytest.mark.parametrize("side", [2, 4, 6, 16])
@pytest.mark.parametrize("name", ["alternate", "spiral_out", "spiral_in"])
def test_unbroken_orders_move_to_a_neighbour(name, side):
    row, column = np.divmod(scan_order(name, side), side)
    np.testing.assert_array_equal(np.abs(np.diff(row)) + np.abs(np.diff(column)), 1)


def test_unknown_name():
    with pytest.raises(UserError, match=r"'zigzag'.*row_major"):
        scan_order("zigzag", 4)


def test_the_shared_array_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        scan_order("row_major", 4)[0] = 3
