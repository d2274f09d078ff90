"""A small RAR on the embedded digits that keeps its random orders: for sampling in groups, editing and likelihood."""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parent / "digits.py"))["get_config"]()
    config.name = "digits_any_order"
    config.train.epochs = 36
    config.permutation.update(anneal_start_epoch=18, anneal_end_epoch=27, final_randomness=0.5)
    return config
