"""What the tests share: the golden numbers of the published code, and the small models they are for."""

import json
import os
import pathlib

# Every test process simulates eight devices; a test that wants one takes jax.devices()[:1].
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import pytest

from rar_jax.checkpoints.pytorch import rar_from_pytorch
from rar_jax.models.rar import RAR

DATA = pathlib.Path(__file__).parent / "data"


class Golden:
    """`rar_tiny.npz`: the published PyTorch code on small random weights."""

    def __init__(self):
        self.arrays = np.load(DATA / "rar_tiny.npz")
        self.config = json.loads(str(self.arrays["config"]))

    def __getitem__(self, name):
        return self.arrays[name]

    def tensors(self, prefix):
        """Published name -> array, of the tensors under a prefix."""
        return {name.removeprefix(prefix): self[name] for name in self.arrays.files if name.startswith(prefix)}

    @property
    def labels(self):
        """Class labels, the null class where the golden run dropped the label."""
        return np.where(self["label_dropped"], self.config["classes"], self["class_labels"])

    @property
    def params(self):
        return rar_from_pytorch(self.tensors("params/"))


@pytest.fixture(scope="session")
def golden():
    return Golden()


@pytest.fixture(scope="session")
def golden_model(golden):
    config = golden.config
    return RAR(
        grid_side=int(config["seq_len"] ** 0.5),
        codebook_size=config["codebook"],
        num_classes=config["classes"],
        width=config["hidden"],
        depth=config["depth"],
        num_heads=config["heads"],
        mlp_width=config["mlp"],
        dropout=0.0,
        attention_dropout=0.0,
    )


@pytest.fixture(scope="session")
def golden_json():
    """Reads one of the golden JSON files by name."""
    return lambda name: json.loads((DATA / name).read_text())
