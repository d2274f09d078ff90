"""Loads weights from a run's folder, the folder of one of its steps, a converted folder, or a published file."""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rar_jax.checkpoints.manifest import checkpoint_identity, file_identity
from rar_jax.checkpoints.pytorch import (
    inception_from_pytorch,
    inception_to_pytorch,
    kind_of,
    rar_from_pytorch,
    rar_sizes,
    rar_to_pytorch,
    vqgan_from_pytorch,
    vqgan_to_pytorch,
)
from rar_jax.checkpoints.store import FOLDER, CheckpointStore, restored_dtype, save_params
from rar_jax.checkpoints.tensor_files import Tensor, read_metadata, read_tensors
from rar_jax.config import RAR_SIZES, Config, DataConfig, ModelConfig, SampleConfig
from rar_jax.errors import UserError, naming
from rar_jax.files import write_atomically
from rar_jax.models.inception import InceptionV3
from rar_jax.models.rar import RAR
from rar_jax.models.sizes import PUBLISHED_GROUPS, VQGANConfig
from rar_jax.models.vqgan import VQGAN
from rar_jax.run_folder import CONFIG_FILE, config_from_text, config_text, read_config, read_fields, write_config
from rar_jax.schema import build_section

_log = logging.getLogger(__name__)

# Side, in pixels, of the patch that one token of the published tokenizer encodes.
_PUBLISHED_DOWNSAMPLING = 16
# The config.json of a converted folder of these kinds has no run's config, only the section of the network.
_WITHOUT_CONFIG = ("vqgan", "inception")
# Names in the metadata of .safetensors files: of a VQGAN, the only size that its tensors do not show; of a RAR, what
# sampling needs of its run.
_GROUPS = "groups"
_CONFIG, _STEP = "rar_jax_config", "rar_jax_step"


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network and its parameters.

    Attributes:
      kind: rar, vqgan or inception.
      model: the network.
      params: its parameters; the moving average if the run has one.
      identity: 12 hexadecimal digits that identify the checkpoint or the file by the SHA-256 digest of its bytes.
      step: the checkpoint's step; 0 for published weights.
      config: the config of a RAR's run; published weights get one of their size, with the paper's sampling options. A
        .safetensors file that was converted from a run has the step and the config of this run.
    """

    kind: str
    model: nn.Module
    params: dict[str, Any]
    identity: str
    step: int = 0
    config: Config | None = None


def load_weights(
    path: epath.PathLike,
    kind: str | None = None,
    step: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    dtype: str | None = "float32",
) -> Weights:
    """Loads weights of any kind.

    Args:
      path: a run's folder, the folder of one of its steps, a folder that `python -m rar_jax convert` wrote, or a .bin,
        .pth or .safetensors file.
      kind: rar, vqgan or inception; by default all kinds are accepted.
      step: the checkpoint's step; by default the newest one that is not damaged.
      sharding: sharding of each array; by default the first device holds all arrays.
      dtype: dtype to which the parameters are cast, and the dtype that a RAR computes in: float32,
        bfloat16, or None for the dtype that its run computed in, which for published weights is the paper's bfloat16.

    Raises:
      UserError: there are no weights of that name and kind, or they are damaged.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"no weights in {str(path)!r}: there is no such file or folder")
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if path.is_file():
        if step is not None:
            raise UserError(f"{path} is a file of weights and has no step {step}")
        return _from_file(path, kind, sharding, dtype)
    folder, of_name = split_step(path)
    if of_name is not None and step not in (None, of_name):
        raise UserError(f"{path} is the checkpoint of step {of_name}, not of step {step}: leave the step out")
    return _from_folder(folder, kind, step if of_name is None else of_name, sharding, dtype)


def split_step(path: epath.PathLike) -> tuple[epath.Path, int | None]:
    """Splits the folder of one step into the run's folder and the step; returns any other path, and None."""
    path = epath.Path(path)
    if path.parent.name == FOLDER and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def _check_kind(path: epath.Path, wanted: str | None, kind: str) -> None:
    """Raises a `UserError` if weights are not of the wanted kind, before they are read."""
    if wanted not in (None, kind):
        raise UserError(f"{path} holds {kind} weights; {wanted} weights are needed")


def _from_file(path: epath.Path, wanted: str | None, sharding: jax.sharding.Sharding, dtype: str | None) -> Weights:
    tensors = read_tensors(path)
    kind = kind_of(tensors)
    if kind is None:
        raise UserError(
            f"{path} does not hold a RAR, a MaskGIT-VQGAN or the FID Inception network; its first tensors are "
            f"{list(tensors)[:5]}"
        )
    _check_kind(path, wanted, kind)
    config, step, metadata = None, 0, read_metadata(path)
    with naming(str(path)):
        if kind in _WITHOUT_CONFIG:
            dtype = dtype or "float32"
            model, params = _network_from_pytorch(kind, tensors, metadata)
        else:
            config, step = _run_of_file(rar_sizes(tensors), metadata)
            dtype = dtype or config.train.dtype
            model, params = RAR(config.model, jnp.dtype(dtype)), rar_from_pytorch(tensors)
        return Weights(kind, model, _put(params, sharding, dtype), file_identity(path), step, config)


def _run_of_file(sizes: dict[str, int], metadata: Mapping[str, str]) -> tuple[Config, int]:
    """Returns the config and the step of a RAR's file: of its run, or those of published weights."""
    if _CONFIG not in metadata:
        return _published_config(sizes), 0
    config, step = config_from_text(metadata[_CONFIG]), metadata.get(_STEP, "0")
    if not step.isdecimal():
        raise UserError(f"its metadata {_STEP}={step!r} must be a number")
    for name, size in sizes.items():
        if getattr(config.model, name) != size:
            raise UserError(
                f"its metadata {_CONFIG} has model.{name}={getattr(config.model, name)}, but its tensors have {size}"
            )
    # A network without target-aware embeddings is written with zeros for them.
    return dataclasses.replace(config, model=dataclasses.replace(config.model, target_aware=True)), int(step)


def _network_from_pytorch(
    kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[nn.Module, dict[str, Any]]:
    if kind == "inception":
        return inception_from_pytorch(tensors)
    groups = metadata.get(_GROUPS, str(PUBLISHED_GROUPS))
    if not groups.isdecimal():
        raise UserError(f"its metadata {_GROUPS}={groups!r} must be a number")
    model, params = vqgan_from_pytorch(tensors, int(groups))
    if _GROUPS not in metadata and model.config.width != VQGANConfig.width:
        _log.warning(
            "a VQGAN of width %d whose file does not say how many groups its norms have: %d are assumed, as in the "
            "published tokenizer of width %d",
            model.config.width, PUBLISHED_GROUPS, VQGANConfig.width,
        )  # fmt: skip
    return model, params


def published_form(weights: Weights) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the tensors with the published names, and the metadata, that a .safetensors file of weights holds."""
    if weights.kind == "rar":
        return rar_to_pytorch(weights.params), {_CONFIG: config_text(weights.config), _STEP: str(weights.step)}
    if weights.kind == "inception":
        return inception_to_pytorch(weights.params), {}
    return vqgan_to_pytorch(weights.params), {_GROUPS: str(weights.model.config.groups)}


def _put(params: dict[str, Any], sharding: jax.sharding.Sharding, dtype: str) -> dict[str, Any]:
    """Casts parameters and moves them to the devices, one at a time and in place, so that memory holds one copy."""
    for name in list(params):
        value = params.pop(name)
        if isinstance(value, dict):
            params[name] = _put(value, sharding, dtype)
        else:
            params[name] = jax.device_put(value.astype(restored_dtype(value.dtype, dtype), copy=False), sharding)
    return params


def _published_config(sizes: dict[str, int]) -> Config:
    model = ModelConfig(**sizes)
    # A model of another size than the paper's gets the default sampling options.
    name, sample = "published", SampleConfig()
    for size, (known, options) in RAR_SIZES.items():
        if (known.width, known.depth, known.mlp_width) == (model.width, model.depth, model.mlp_width):
            name, sample = size, options
    data = DataConfig(
        name="synthetic", image_size=model.grid_side * _PUBLISHED_DOWNSAMPLING, downsampling=_PUBLISHED_DOWNSAMPLING
    )
    return Config(name=name, model=model, sample=sample, data=data)


def _from_folder(
    folder: epath.Path, wanted: str | None, step: int | None, sharding: jax.sharding.Sharding, dtype: str | None
) -> Weights:
    fields = read_fields(folder)
    kind = fields["kind"]
    _check_kind(folder, wanted, kind)
    config = None if kind in _WITHOUT_CONFIG else read_config(folder)
    if kind == "vqgan":
        with naming(str(folder / CONFIG_FILE)):
            # Sizes that are newer than the folder have their defaults.
            sizes = build_section(VQGANConfig, dataclasses.asdict(VQGANConfig()) | fields.get("model", {}), "model.")
    dtype = dtype or (config.train.dtype if config else "float32")
    with contextlib.closing(CheckpointStore(folder)) as store:
        if step is None:
            step, params = store.restore_newest_sampling_params(sharding, dtype)
        elif step in store.steps:
            params = store.restore_sampling_params(step, sharding, dtype)
        else:
            raise UserError(f"no checkpoint of step {step} in {str(folder)!r}: there are {store.steps}")
    identity = checkpoint_identity(folder / FOLDER / str(step))
    if kind == "inception":
        return Weights(kind, InceptionV3(), params, identity, step)
    if kind == "vqgan":
        return Weights(kind, VQGAN(sizes), params, identity, step)
    return Weights(kind, RAR(config.model, jnp.dtype(dtype)), params, identity, step, config)


def fingerprint(params: Mapping[str, Any]) -> str:
    """Returns 12 hexadecimal digits that are equal for equal weights, in any file or folder.

    Records of tokens and of scores store it for tokenizers and Inception networks. `Weights.identity` identifies the
    file or the checkpoint instead.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf, "<f4"))
    return digest.hexdigest()[:12]


def save_weights(folder: epath.PathLike, weights: Weights) -> None:
    """Writes weights as a folder that `load_weights` reads.

    Raises:
      UserError: the folder is not empty.
    """
    folder = epath.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output={folder} exists already: choose another folder")
    save_params(folder, weights.step, weights.params)
    # Written last, so that a folder that was interrupted is not taken for a complete one.
    if weights.kind in _WITHOUT_CONFIG:
        sizes = dataclasses.asdict(weights.model.config) if weights.kind == "vqgan" else {}
        write_atomically(folder / CONFIG_FILE, json.dumps({"kind": weights.kind, "model": sizes}, indent=2) + "\n")
    else:
        write_config(folder, weights.config)
