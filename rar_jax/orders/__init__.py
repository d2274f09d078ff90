"""The orders in which image tokens are predicted: fixed scan orders, and the annealed random permutation."""

from rar_jax.orders.permutation import SHAPES, randomness, row_keys, sample_orders
from rar_jax.orders.scan import SCAN_ORDERS, scan_order

__all__ = ["SCAN_ORDERS", "SHAPES", "randomness", "row_keys", "sample_orders", "scan_order"]
