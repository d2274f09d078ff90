"""Published PyTorch tensors to our parameters and back: the one place that knows both sets of names."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

# Published name, our path, and what turns one into the other. "*" is the block, which we stack on a leading axis.
#   same: as it is. transpose: a linear layer's weight [out, in] is our kernel [in, out].
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


def rar_from_pytorch(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters from the tensors of a published RAR checkpoint.

    Args:
      tensors: published name -> array, as in a PyTorch state dict.

    Returns:
      The parameters of `models.rar.RAR`, blocks stacked on the leading axis.

    Raises:
      ValueError: tensors are missing or not RAR's; all of them are named.
    """
    depth = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")), default=-1)
    unused, missing, ours = set(tensors), [], {}
    for published, path, kind in RAR_TENSORS:
        names = [published.replace("*", str(i)) for i in range(depth)] if "*" in published else [published]
        missing += [name for name in names if name not in tensors]
        unused -= set(names)
        arrays = [_TO_OURS[kind](np.asarray(tensors[name])) for name in names if name in tensors]
        if arrays:
            ours[path] = np.stack(arrays) if "*" in published else arrays[0]
    if missing or unused:
        raise ValueError(f"not a RAR checkpoint: tensors missing {sorted(missing)}, unknown {sorted(unused)}")
    return flax.traverse_util.unflatten_dict(ours, sep="/")


def rar_to_pytorch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The published names and shapes of our parameters, or of any tree like them (gradients, say): the inverse."""
    ours = flax.traverse_util.flatten_dict(params, sep="/")
    tensors = {}
    for published, path, kind in RAR_TENSORS:
        if "*" in published:
            for i, layer in enumerate(np.asarray(ours[path])):
                tensors[published.replace("*", str(i))] = _TO_PUBLISHED[kind](layer)
        else:
            tensors[published] = _TO_PUBLISHED[kind](np.asarray(ours[path]))
    return tensors
