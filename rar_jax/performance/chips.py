"""The rates and memory of accelerators, from their data sheets."""

from typing import NamedTuple


class Chip(NamedTuple):
    """The data sheet of an accelerator.

    Attributes:
      flop_rate: rate of dense bfloat16 products, FLOP/s.
      bandwidth: memory bandwidth, bytes/s.
      memory: memory, bytes.
      link_rate: rate at which it sends to its neighbours over all links, bytes/s. Where a data sheet gives the sum of
        both directions, this is half of it.
      source: the data sheet.
      is_gpu: whether it is a GPU rather than a TPU.
    """

    flop_rate: float
    bandwidth: float
    memory: float
    link_rate: float
    source: str
    is_gpu: bool = False


CHIPS = {
    "v4": Chip(275e12, 1200e9, 32 * 2**30, 300e9, "https://cloud.google.com/tpu/docs/v4"),
    "v5e": Chip(197e12, 819e9, 16 * 2**30, 200e9, "https://cloud.google.com/tpu/docs/v5e"),
    "v5p": Chip(459e12, 2765e9, 95 * 2**30, 600e9, "https://cloud.google.com/tpu/docs/v5p"),
    "v6e": Chip(918e12, 1600e9, 32 * 2**30, 400e9, "https://cloud.google.com/tpu/docs/v6e"),
    "A100": Chip(312e12, 2039e9, 80e9, 300e9, "NVIDIA A100 80GB SXM data sheet", is_gpu=True),
    "H100": Chip(989e12, 3350e9, 80e9, 450e9, "NVIDIA H100 SXM data sheet", is_gpu=True),
    "H200": Chip(989e12, 4800e9, 141e9, 450e9, "NVIDIA H200 SXM data sheet", is_gpu=True),
}
