"""Converts published PyTorch tensors to our parameters and back. Only this module knows both sets of names."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from rar_jax.checkpoints.tensor_files import Tensor
from rar_jax.errors import UserError
from rar_jax.models.inception import InceptionV3
from rar_jax.models.rar import RAR, SPARE_STEP_ROWS
from rar_jax.models.sizes import PUBLISHED_GROUPS, ModelConfig, VQGANConfig, num_groups
from rar_jax.models.vqgan import VQGAN

# Published name, our path, and the conversion. "*" is the number of a block; our blocks are stacked on a leading axis.
#   same: unchanged. transpose: a linear layer's weight [out, in] is our kernel [in, out].
#   leading: the published tensor has an extra leading axis of one.
RAR_TENSORS = (
    ("embeddings.weight", "embeddings/embedding", "same"),
    ("cls_token", "cls_token", "leading"),
    ("pos_embed", "position_embedding", "leading"),
    ("target_aware_pos_embed", "target_aware_embedding", "leading"),
    ("timesteps_embeddings", "step_embedding", "leading"),
    ("blocks.*.adaLN_modulation.1.weight", "blocks/modulation/kernel", "transpose"),
    ("blocks.*.adaLN_modulation.1.bias", "blocks/modulation/bias", "same"),
    ("blocks.*.norm1.weight", "blocks/norm1/scale", "same"),
    ("blocks.*.norm1.bias", "blocks/norm1/bias", "same"),
    ("blocks.*.attn.qkv.weight", "blocks/attention/qkv/kernel", "transpose"),
    ("blocks.*.attn.qkv.bias", "blocks/attention/qkv/bias", "same"),
    ("blocks.*.attn.q_norm.weight", "blocks/attention/q_norm/scale", "same"),
    ("blocks.*.attn.q_norm.bias", "blocks/attention/q_norm/bias", "same"),
    ("blocks.*.attn.k_norm.weight", "blocks/attention/k_norm/scale", "same"),
    ("blocks.*.attn.k_norm.bias", "blocks/attention/k_norm/bias", "same"),
    ("blocks.*.attn.proj.weight", "blocks/attention/proj/kernel", "transpose"),
    ("blocks.*.attn.proj.bias", "blocks/attention/proj/bias", "same"),
    ("blocks.*.norm2.weight", "blocks/norm2/scale", "same"),
    ("blocks.*.norm2.bias", "blocks/norm2/bias", "same"),
    ("blocks.*.mlp.fc1.weight", "blocks/mlp/fc1/kernel", "transpose"),
    ("blocks.*.mlp.fc1.bias", "blocks/mlp/fc1/bias", "same"),
    ("blocks.*.mlp.fc2.weight", "blocks/mlp/fc2/kernel", "transpose"),
    ("blocks.*.mlp.fc2.bias", "blocks/mlp/fc2/bias", "same"),
    ("adaln_before_head.adaLN_modulation.1.weight", "head_modulation/kernel", "transpose"),
    ("adaln_before_head.adaLN_modulation.1.bias", "head_modulation/bias", "same"),
    ("lm_head.weight", "lm_head/kernel", "transpose"),
    ("lm_head.bias", "lm_head/bias", "same"),
)

_TO_OURS = {"same": lambda x: x, "transpose": lambda x: x.T, "leading": lambda x: x[0]}
_TO_PUBLISHED = {"same": lambda x: x, "transpose": lambda x: x.T, "leading": lambda x: x[None]}

# A tensor that only networks of this kind have.
_KIND_TENSORS = {
    "rar": "target_aware_pos_embed",
    "vqgan": "quantize.embedding.weight",
    "inception": "Mixed_7c.branch_pool.conv.weight",
}


def kind_of(names: Collection[str]) -> str | None:
    """Returns the kind of network that has tensors of these names: rar, vqgan, inception, or None if unknown."""
    return next((kind for kind, name in _KIND_TENSORS.items() if name in names), None)


def rar_sizes(tensors: Mapping[str, np.ndarray | Tensor]) -> dict[str, int]:
    """Returns the sizes of a published RAR checkpoint, derived from its tensors: fields of `models.sizes.ModelConfig`.

    Raises:
      UserError: tensors that decide the sizes are missing or misshapen, or the tokens do not form a square grid.
    """
    dimensions = {"embeddings.weight": 2, "lm_head.weight": 2, "timesteps_embeddings": 3, "blocks.0.mlp.fc1.weight": 2}
    dimensions |= {"blocks.0.attn.q_norm.weight": 1}
    if missing := [name for name in dimensions if name not in tensors]:
        raise UserError(f"not a RAR checkpoint: tensors missing {missing}")
    for name, count in dimensions.items():
        if 0 in (shape := tuple(tensors[name].shape)) or len(shape) != count:
            raise UserError(f"not a RAR checkpoint: misshapen {name}, {shape}")
    rows, width = tensors["embeddings.weight"].shape
    codebook_size = tensors["lm_head.weight"].shape[0]
    (head_width,) = tensors["blocks.0.attn.q_norm.weight"].shape
    if width % head_width:
        raise UserError(
            f"not a RAR checkpoint: its width of {width} is not divisible by the head width of {head_width}"
        )
    # The rows are the codes, the classes, a mask token and the null class.
    if (num_classes := rows - codebook_size - 2) < 1:
        raise UserError(f"not a RAR checkpoint: {rows} embeddings of {codebook_size} codes leave none for classes")
    num_tokens = tensors["timesteps_embeddings"].shape[1] - SPARE_STEP_ROWS
    grid_side = math.isqrt(max(num_tokens, 0))
    if grid_side < 1 or grid_side**2 != num_tokens:
        raise UserError(f"not a RAR checkpoint: timesteps_embeddings has {num_tokens} tokens, not a square")
    return {
        "grid_side": grid_side,
        "codebook_size": codebook_size,
        "num_classes": num_classes,
        "width": width,
        "depth": 1 + _largest_index(tensors, r"blocks\.(\d+)\."),
        "num_heads": width // head_width,
        "mlp_width": tensors["blocks.0.mlp.fc1.weight"].shape[0],
    }


def rar_from_pytorch(tensors: Mapping[str, np.ndarray | Tensor]) -> dict[str, Any]:
    """Converts the tensors of a published RAR checkpoint, which are read one at a time.

    Args:
      tensors: published name -> array, or `Tensor`.

    Returns:
      The parameters of `models.rar.RAR`, blocks stacked on the leading axis.

    Raises:
      UserError: tensors are missing, unknown or misshapen (all are named), or a number is not finite.
    """
    sizes = rar_sizes(tensors)
    depth = sizes["depth"]
    _check_layout("RAR checkpoint", rar_layout(sizes), tensors)
    ours = {}
    for published, path, kind in RAR_TENSORS:
        if "*" not in published:
            ours[path] = np.ascontiguousarray(_TO_OURS[kind](_finite(tensors, published)))
            continue
        for i in range(depth):
            layer = _TO_OURS[kind](_finite(tensors, published.replace("*", str(i))))
            stacked = ours.setdefault(path, np.empty((depth, *layer.shape), layer.dtype))
            stacked[i] = layer
    return flax.traverse_util.unflatten_dict(ours, sep="/")


def rar_layout(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Returns the published names and shapes of a RAR with these sizes (see `rar_sizes`)."""
    model = RAR(ModelConfig(**sizes))
    tokens, orders = np.zeros((1, 1), np.int32), np.zeros((1, model.config.num_tokens), np.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens[0], orders)["params"]
    ours = flax.traverse_util.flatten_dict(params, sep="/")
    layout = {}
    for published, path, kind in RAR_TENSORS:
        shape = ours[path].shape[1:] if "*" in published else ours[path].shape
        shape = {"same": shape, "transpose": shape[::-1], "leading": (1, *shape)}[kind]
        layers = range(sizes["depth"]) if "*" in published else (0,)
        layout |= {published.replace("*", str(i)): shape for i in layers}
    return layout


def _check_layout(what: str, wanted: Mapping[str, tuple], tensors: Mapping[str, np.ndarray | Tensor]) -> None:
    """Raises a `UserError` that lists every tensor that is missing, unknown or misshapen."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    missing, unknown = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    misshapen = [
        f"{name} is {shapes[name]}, not {shape}" for name, shape in wanted.items() if shapes.get(name, shape) != shape
    ]
    if missing or unknown or misshapen:
        raise UserError(f"not a {what}: tensors missing {missing}, unknown {unknown}, misshapen {misshapen}")


def _finite(tensors: Mapping[str, np.ndarray | Tensor], name: str, dtype: Any = None) -> np.ndarray:
    """Reads a tensor, cast to a dtype if given; raises a `UserError` if a number in it is not finite."""
    array = np.asarray(tensors[name], dtype)
    if wrong := array.size - np.count_nonzero(np.isfinite(array)):
        raise UserError(f"{wrong} of the {array.size} numbers of tensor {name} are not finite: download the file again")
    return array


def rar_to_pytorch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts our parameters, or a tree of the same structure such as gradients: the inverse of `rar_from_pytorch`."""
    ours = flax.traverse_util.flatten_dict(params, sep="/")
    tensors = {}
    # A model without target-aware embeddings equals one whose embeddings are zero, which the published form requires.
    ours = {"target_aware_embedding": np.zeros_like(ours["position_embedding"])} | ours
    for published, path, kind in RAR_TENSORS:
        if "*" in published:
            for i, layer in enumerate(np.asarray(ours[path])):
                tensors[published.replace("*", str(i))] = _TO_PUBLISHED[kind](layer)
        else:
            tensors[published] = _TO_PUBLISHED[kind](np.asarray(ours[path]))
    return tensors


def vqgan_name(path: str) -> str:
    """Returns the published name of one of our VQGAN parameters, such as encoder/down_0/block_1/conv1/kernel.

    Both have the same tree of modules. Published names have a dot before the number in a list, and PyTorch's names for
    the leaves.
    """
    *modules, leaf = re.sub(r"_(\d+)/", r"/\1/", path).split("/")
    leaf = {"kernel": "weight", "scale": "weight", "embedding": "embedding.weight", "bias": "bias"}[leaf]
    return ".".join([*modules, leaf])


def vqgan_from_pytorch(
    tensors: Mapping[str, np.ndarray | Tensor], groups: int = PUBLISHED_GROUPS
) -> tuple[VQGAN, dict[str, Any]]:
    """Makes a MaskGIT-VQGAN from published tensors; their shapes decide its sizes.

    Args:
      tensors: published name -> array, or `Tensor`.
      groups: see `sizes.num_groups`; the shapes do not show it.

    Returns:
      The network and its parameters, float32.

    Raises:
      UserError: tensors are missing, unknown or misshapen (all are named), or a number is not finite.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    levels = 1 + _largest_index(shapes, r"encoder\.down\.(\d+)\.")
    heads = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(max(levels, 1))]
    sized = ["encoder.conv_in.weight", "encoder.conv_out.weight", "quantize.embedding.weight", *heads]
    if missing := [name for name in sized if name not in shapes]:
        raise UserError(f"not a MaskGIT-VQGAN: tensors missing {missing}")
    for name in sized:
        if 0 in shapes[name] or len(shapes[name]) != (2 if name.startswith("quantize") else 4):
            raise UserError(f"not a MaskGIT-VQGAN: misshapen {name}, {shapes[name]}")
    width = shapes["encoder.conv_in.weight"][0]
    config = VQGANConfig(
        width=width,
        multipliers=tuple(max(shapes[name][0] // width, 1) for name in heads),
        num_blocks=1 + _largest_index(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        latent_width=shapes["encoder.conv_out.weight"][0],
        codebook_size=shapes["quantize.embedding.weight"][0],
        groups=groups,
    )
    for channels in sorted(set(config.level_widths)):
        if channels % num_groups(groups, channels):
            raise UserError(f"not a MaskGIT-VQGAN: a norm of {channels} channels cannot have {groups} groups")
    model, side = VQGAN(config), config.downsampling
    like = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, side, side, 3), np.float32))["params"]
    return model, _from_published("MaskGIT-VQGAN", flax.traverse_util.flatten_dict(like, sep="/"), vqgan_name, tensors)


def vqgan_to_pytorch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts VQGAN parameters to the published names and shapes: the inverse of `vqgan_from_pytorch`."""
    return _to_published(params, vqgan_name)


def inception_name(path: str) -> str:
    """Returns the published name of one of our Inception parameters, such as Mixed_5b/branch1x1/bn/mean.

    Both have the same tree of modules. Published names have PyTorch's names for the leaves.
    """
    *modules, leaf = path.split("/")
    leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(leaf, leaf)
    return ".".join([*modules, leaf])


def inception_from_pytorch(tensors: Mapping[str, np.ndarray | Tensor]) -> tuple[InceptionV3, dict[str, Any]]:
    """Makes the FID Inception network from the tensors of pt_inception-2015-12-05.

    Args:
      tensors: published name -> array, or `Tensor`.

    Returns:
      The network and its parameters, float32. They include two kinds of tensors that the network does not use and
      `inception_to_pytorch` needs: the bias of the last layer, and each normalisation's num_batches_tracked, int32.

    Raises:
      UserError: tensors are missing, unknown or misshapen (all are named), for example because the file holds
        another Inception v3 network, or a number is not finite.
    """
    model = InceptionV3()
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 1, 1, 3), np.uint8))["params"]
    like = flax.traverse_util.flatten_dict(params, sep="/")
    unused = {path.replace("/mean", "/num_batches_tracked") for path in like if path.endswith("/mean")}
    like |= {path: jax.ShapeDtypeStruct((), np.int32) for path in unused}
    like["fc/bias"] = jax.ShapeDtypeStruct(like["fc/kernel"].shape[1:], np.float32)
    return model, _from_published("FID Inception network", like, inception_name, tensors)


def inception_to_pytorch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts Inception parameters to the published form: the inverse of `inception_from_pytorch`."""
    tensors = _to_published(params, inception_name)
    # PyTorch counts in int64, which JAX disables by default.
    return {name: array.astype(np.int64) if array.dtype == np.int32 else array for name, array in tensors.items()}


def _from_published(
    what: str,
    like: Mapping[str, jax.ShapeDtypeStruct],
    name_of: Callable[[str], str],
    tensors: Mapping[str, np.ndarray | Tensor],
) -> dict[str, Any]:
    """Converts tensors to parameters of the given paths, shapes and dtypes; `name_of` maps paths to published names."""
    names = {path: name_of(path) for path in like}
    shapes = {path: x.shape for path, x in like.items()}
    # Flax stores kernels as [..., in, out], PyTorch as [out, in, ...].
    shapes |= {path: (*shape[:-3:-1], *shape[:-2]) for path, shape in shapes.items() if path.endswith("kernel")}
    _check_layout(what, {names[path]: shape for path, shape in shapes.items()}, tensors)

    def ours(path):
        array = _finite(tensors, names[path], like[path].dtype)
        return np.moveaxis(array, (0, 1), (-1, -2)) if path.endswith("kernel") else array

    return flax.traverse_util.unflatten_dict({path: ours(path) for path in like}, sep="/")


def _to_published(params: Mapping[str, Any], name_of: Callable[[str], str]) -> dict[str, np.ndarray]:
    """Converts parameters to tensors with published names: the inverse of `_from_published`."""

    def published(path, array):
        return np.moveaxis(array, (-1, -2), (0, 1)) if path.endswith("kernel") else array

    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {name_of(path): published(path, np.asarray(array)) for path, array in flat.items()}


def _largest_index(names: Mapping[str, Any], pattern: str) -> int:
    """Returns the largest number that the pattern's group matches at the beginning of a name, or -1."""
    largest = max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)
    # A network has no more levels or blocks than tensors. A larger number in a name would take all memory.
    return min(largest, len(names))
