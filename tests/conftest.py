"""Fixtures that tests share: the golden numbers of the published code, and small models, configs and data."""

import functools
import json
import os
import pathlib
import runpy
import zlib

# Every test process simulates eight devices; a test that needs one device takes jax.devices()[:1]. The suite spends
# most of its time on compiling small programs that run once, so we turn the compiler's optimisations off.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_image

from rar_jax import schema
from rar_jax.checkpoints.pytorch import rar_from_pytorch
from rar_jax.commands import cli
from rar_jax.config import from_config_dict
from rar_jax.models.rar import RAR
from rar_jax.models.sizes import ModelConfig
from rar_jax.tokenizer_config import TokenizerConfig, tokenizer

DATA = pathlib.Path(__file__).parent / "data"
ROOT = pathlib.Path(__file__).parent.parent


class Golden:
    """The contents of `rar_tiny.npz`: results of the published PyTorch code on small random weights."""

    def __init__(self):
        self.arrays = np.load(DATA / "rar_tiny.npz")
        self.config = json.loads(str(self.arrays["config"]))

    def __getitem__(self, name):
        return self.arrays[name]

    def tensors(self, prefix):
        """Returns published name -> array for the tensors whose names begin with a prefix."""
        return {name.removeprefix(prefix): self[name] for name in self.arrays.files if name.startswith(prefix)}

    @property
    def labels(self):
        """Class labels int [4], with the null class where the golden run dropped the label."""
        return np.where(self["label_dropped"], self.config["classes"], self["class_labels"])

    @functools.cached_property
    def params(self):
        return rar_from_pytorch(self.tensors("params/"))


@pytest.fixture(scope="session")
def golden():
    return Golden()


@pytest.fixture(scope="session")
def golden_model(golden):
    config = golden.config
    return RAR(
        ModelConfig(
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
    )


@pytest.fixture(scope="session")
def golden_json():
    """A function that reads a golden JSON file, given its name."""
    return lambda name: json.loads((DATA / name).read_text())


@pytest.fixture(scope="session")
def small_config():
    """A function that makes the config of a short run on the digits. Its arguments are changed fields by section."""

    def make(**sections):
        fields = runpy.run_path(str(ROOT / "configs" / "digits.py"))["get_config"]()
        fields.model.update(width=16, depth=2, num_heads=2, mlp_width=32)
        fields.train.update(epochs=3, log_every=5)
        fields.permutation.update(anneal_start_epoch=1, anneal_end_epoch=2)
        fields.optimizer.warmup_epochs = 1
        fields.eval.update(every=1000, num_images=32, samples_per_class=0, report_samples=0, score_every=0)
        for section, values in sections.items():
            fields[section].update(values)
        return from_config_dict(fields)

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A function that makes the config of a tokenizer for 8 x 8 pixels. Its arguments are changed fields by section."""

    def make(**sections):
        fields = tokenizer()
        fields.model.update(width=8, multipliers=(1, 2), num_blocks=1, latent_width=2, codebook_size=16)
        fields.quantizer.levels = (4, 4)
        fields.loss.update(discriminator_width=8, discriminator_layers=1)
        fields.optimizer.update(learning_rate=3e-3, warmup_steps=1)
        fields.train.update(batch_size=8, steps=12, log_every=4)
        fields.data.update(images="images", image_size=8)
        fields.eval.update(every=6, grid_images=4)
        fields.checkpoint.every = 6
        for section, values in sections.items():
            fields[section].update(values)
        return schema.build_config(fields, TokenizerConfig)

    return make


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keeps what the code caches out of the user's folder, and compiles each program of a test file only once.

    Runs that are interrupted, resumed and compared compile the same programs again and again.
    """
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    cli.keep_compiled_programs()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Class folders of real JPEG files: 48 parts each of china.jpg and flower.jpg, 200 x 160 pixels."""
    folder = tmp_path_factory.mktemp("scenes")
    for name in ("china", "flower"):
        picture = load_sample_image(f"{name}.jpg")
        (folder / name).mkdir()
        for top in range(0, 300, 50):
            for left in range(0, 480, 60):
                piece = Image.fromarray(picture[top : top + 160, left : left + 200])
                piece.save(folder / name / f"{top:03d}_{left:03d}.jpg", quality=92)
    return folder


@pytest.fixture(scope="session")
def vqgan_file(tmp_path_factory):
    """A file with the weights of `vqgan_tiny.npz`, a tokenizer with a downsampling of 2 and 24 codes."""
    path = tmp_path_factory.mktemp("vqgan") / "tiny.safetensors"
    arrays = np.load(DATA / "vqgan_tiny.npz")
    save_file({n.removeprefix("params/"): arrays[n] for n in arrays.files if n.startswith("params/")}, path)
    return path


@pytest.fixture(scope="session")
def inception_tensors(golden_json):
    """Every tensor of the FID Inception network, filled with the numbers that gave the features in `inception.npz`."""

    def fill(name, shape):
        random = np.random.RandomState(zlib.crc32(name.encode()))
        leaf = name.rsplit(".", 1)[1]
        if leaf == "num_batches_tracked":
            return np.array(random.randint(10**6))
        if leaf == "running_var":
            return random.uniform(0.5, 1.5, shape).astype(np.float32)
        if leaf in ("running_mean", "bias"):
            scale, offset = 0.1, 0
        elif name.endswith("bn.weight"):
            scale, offset = 0.1, 1
        else:
            scale, offset = np.sqrt(2 / np.prod(shape[1:])), 0
        return (offset + scale * random.standard_normal(shape)).astype(np.float32)

    layout = golden_json("checkpoint_layouts.json")["pt_inception_2015_12_05"]
    return {name: fill(name, shape) for name, shape in layout.items()}


@pytest.fixture(scope="session")
def inception_file(inception_tensors, tmp_path_factory):
    """A file with the weights of `inception_tensors`."""
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(inception_tensors, path)
    return path
