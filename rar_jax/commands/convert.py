"""Converts weights between published files and folders of Orbax checkpoints.

    python -m rar_jax convert --input=rar_b.bin --output=FOLDER
    python -m rar_jax convert --input=FOLDER --output=model.safetensors

The kind of a published file (RAR, MaskGIT-VQGAN or FID Inception) and its sizes are read from its tensors. The number
of groups of a VQGAN's norms is read from the file's metadata; without metadata it is 32. The .safetensors file of a
RAR has the config and the step of its run in its metadata, so that it is sampled like the run.
"""

import jax
from absl import flags
from etils import epath

from rar_jax.checkpoints.tensor_files import SUFFIXES, check_local, write_safetensors
from rar_jax.checkpoints.weights import Weights, load_weights, published_form, save_weights
from rar_jax.commands import shared_flags
from rar_jax.errors import UserError
from rar_jax.run_folder import check_folder

_INPUT = flags.DEFINE_string(
    "input", None, "Weights to read: a published .bin, .pth or .safetensors file, or the folder of a run or conversion."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder to write (Orbax), or a .safetensors file (with the published names)."
)
_NUM_HEADS = flags.DEFINE_integer(
    "num_heads", None, "Number of attention heads that a RAR must have. Default: not checked.", lower_bound=1
)
_STEP = shared_flags.define_step()


def _check_num_heads(weights: Weights) -> None:
    """Raises a `UserError` if --num_heads is given and the weights have another number of heads, or none."""
    given = _NUM_HEADS.value
    if given is None:
        return
    if weights.kind != "rar":
        raise UserError(f"--num_heads={given} is for a RAR, but {_INPUT.value} holds {weights.kind} weights: remove it")
    if given != weights.model.config.num_heads:
        raise UserError(
            f"--num_heads={given}, but the tensors of {_INPUT.value} have {weights.model.config.num_heads} heads: "
            "remove the flag, or check that this is the right file"
        )


def main(argv):
    del argv
    # Nothing is computed, and a program that trains may occupy the accelerators.
    jax.config.update("jax_platforms", "cpu")
    if not _INPUT.value or not _OUTPUT.value:
        raise UserError("name what to read with --input and what to write with --output")
    check_local(_OUTPUT.value)
    output = epath.Path(_OUTPUT.value)
    if output.exists():
        raise UserError(f"--output={output} exists already: remove it or choose another name")
    if output.suffix in SUFFIXES and output.suffix != ".safetensors":
        raise UserError(f"--output={output}: weights are written as a folder or as a .safetensors file")
    check_folder("output", output.parent)
    weights = load_weights(_INPUT.value, step=_STEP.value)
    _check_num_heads(weights)
    if output.suffix == ".safetensors":
        output.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(output, *published_form(weights))
    else:
        save_weights(output, weights)
    print(f"{output}: {weights.kind} weights")
