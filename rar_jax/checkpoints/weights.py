"""One way to name weights, everywhere: a run's folder, one step's, a converted folder, or a published file."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rar_jax.checkpoints.pytorch import (
    inception_from_pytorch,
    kind_of,
    rar_from_pytorch,
    rar_sizes,
    vqgan_from_pytorch,
)
from rar_jax.checkpoints.store import FOLDER, CheckpointStore, restored_dtype, save_params
from rar_jax.checkpoints.tensor_files import read_tensors
from rar_jax.config import RAR_SIZES, Config, DataConfig, ModelConfig, SampleConfig
from rar_jax.errors import UserError
from rar_jax.files import write_atomically
from rar_jax.models.inception import InceptionV3
from rar_jax.models.rar import RAR
from rar_jax.models.vqgan import VQGAN
from rar_jax.run_folder import CONFIG_FILE, read_config, read_kind, write_config

# The patch that a token of the published tokenizer stands for.
_PUBLISHED_DOWNSAMPLING = 16
# The kinds that no run trains: a converted folder's config.json has the sizes of the network, and no run's config.
_NETWORKS = {"vqgan": VQGAN, "inception": InceptionV3}
_FROM_PYTORCH = {"vqgan": vqgan_from_pytorch, "inception": inception_from_pytorch}


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network and its parameters.

    Attributes:
      kind: rar, vqgan or inception.
      model: the network.
      params: its parameters; of a run with a moving average, that.
      step: of the checkpoint they are from; 0 for published weights.
      config: of a RAR's run; for published weights one of its sizes, with the paper's sampling options.
    """

    kind: str
    model: nn.Module
    params: dict[str, Any]
    step: int = 0
    config: Config | None = None


def load_weights(
    path: epath.PathLike,
    kind: str | None = None,
    step: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    dtype: str | None = "float32",
) -> Weights:
    """Loads weights.

    Args:
      path: a run's folder (its newest checkpoint that is whole, if `step` is not given), one of its steps' folders, a
        folder that `python -m rar_jax convert` wrote, or a .bin, .pth or .safetensors file.
      kind: rar, vqgan or inception; by default any will do.
      step: of the checkpoint.
      sharding: how each array is to lie; by default on the first device.
      dtype: of the parameters, whatever they are stored in, and what a RAR computes in: float32, bfloat16, or None for
        what its run computed in, which for published weights is the paper's bfloat16.

    Raises:
      UserError: there is nothing of that name and kind, or it cannot be read.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"no weights in {str(path)!r}: there is no such file or folder")
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if path.is_file():
        if step is not None:
            raise UserError(f"{path} is a file of weights and has no step {step}")
        weights = _from_file(path, sharding, dtype)
    else:
        path, of_name = split_step(path)
        step = step if of_name is None else of_name
        weights = _from_folder(path, step, sharding, dtype)
    if kind not in (None, weights.kind):
        raise UserError(f"{path} holds {weights.kind} weights; {kind} weights are needed")
    return weights


def split_step(path: epath.PathLike) -> tuple[epath.Path, int | None]:
    """The run's folder, and the step, where a path names the folder of one of its steps; else the path, and None."""
    path = epath.Path(path)
    if path.parent.name == FOLDER and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def _from_file(path: epath.Path, sharding: jax.sharding.Sharding, dtype: str | None) -> Weights:
    tensors = read_tensors(path)
    kind = kind_of(tensors)
    if kind is None:
        raise UserError(
            f"{path} has the tensors of neither a RAR, a MaskGIT-VQGAN nor the FID Inception network; its first: "
            f"{list(tensors)[:5]}"
        )
    config = None
    try:
        if kind in _NETWORKS:
            dtype = dtype or "float32"
            model, params = _FROM_PYTORCH[kind](tensors)
        else:
            config = _published_config(rar_sizes(tensors))
            dtype = dtype or config.train.dtype
            model, params = RAR(config.model, jnp.dtype(dtype)), rar_from_pytorch(tensors)
        return Weights(kind, model, _put(params, sharding, dtype), config=config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _put(params: dict[str, Any], sharding: jax.sharding.Sharding, dtype: str) -> dict[str, Any]:
    """Casts and moves parameters to the devices one at a time, in place, so that no two copies of all are held."""
    for name in list(params):
        value = params.pop(name)
        if isinstance(value, dict):
            params[name] = _put(value, sharding, dtype)
        else:
            params[name] = jax.device_put(value.astype(restored_dtype(value.dtype, dtype), copy=False), sharding)
    return params


def _published_config(sizes: dict[str, int]) -> Config:
    model = ModelConfig(**sizes)
    # Of a size that is not the paper's, its smallest one's: some have to be.
    name, sample = "published", SampleConfig()
    for size, (known, options) in RAR_SIZES.items():
        if (known.width, known.depth, known.mlp_width) == (model.width, model.depth, model.mlp_width):
            name, sample = size, options
    data = DataConfig(
        name="synthetic", image_size=model.grid_side * _PUBLISHED_DOWNSAMPLING, downsampling=_PUBLISHED_DOWNSAMPLING
    )
    return Config(name=name, model=model, sample=sample, data=data)


def _from_folder(folder: epath.Path, step: int | None, sharding: jax.sharding.Sharding, dtype: str | None) -> Weights:
    kind = read_kind(folder)
    config = None if kind in _NETWORKS else read_config(folder)
    dtype = dtype or (config.train.dtype if config else "float32")
    store = CheckpointStore(folder)
    if step is None:
        step, params = store.restore_newest_sampling_params(sharding, dtype)
    elif step in store.steps:
        params = store.restore_sampling_params(step, sharding, dtype)
    else:
        raise UserError(f"no checkpoint of step {step} in {str(folder)!r}: there are {store.steps}")
    store.close()
    if kind in _NETWORKS:
        sizes = json.loads((folder / CONFIG_FILE).read_text())["model"]
        # JSON has no tuples.
        sizes = {field: tuple(size) if isinstance(size, list) else size for field, size in sizes.items()}
        return Weights(kind, _NETWORKS[kind](**sizes), params, step)
    return Weights(kind, RAR(config.model, jnp.dtype(dtype)), params, step, config)


def fingerprint(params: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for all the weights."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf, "<f4"))
    return digest.hexdigest()[:12]


def save_weights(folder: epath.PathLike, weights: Weights) -> None:
    """Writes weights as a folder that `load_weights` reads.

    Raises:
      UserError: the folder holds something.
    """
    folder = epath.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output={folder} is there already: choose another folder")
    save_params(folder, weights.step, weights.params)
    # Last: without it there is nothing to load.
    if weights.kind in _NETWORKS:
        # Every module of Flax has these two besides.
        fields = [field.name for field in dataclasses.fields(weights.model) if field.name not in ("parent", "name")]
        sizes = {field: getattr(weights.model, field) for field in fields}
        write_atomically(folder / CONFIG_FILE, json.dumps({"kind": weights.kind, "model": sizes}, indent=2) + "\n")
    else:
        write_config(folder, weights.config)
