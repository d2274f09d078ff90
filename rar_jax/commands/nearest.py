"""Compares samples with their nearest training images, which shows whether a model copies them.

    python -m rar_jax nearest --samples=S --training=FOLDER --heldout=FOLDER --tokenizer=RUN --image_size=64

Held-out images are compared in the same way. If a model copies, its samples are nearer to training images than
held-out images are.
"""

from absl import flags
from etils import epath

from rar_jax.commands import cli, shared_flags
from rar_jax.data.sources import check_outside
from rar_jax.data.tokenizers import open_tokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.image_sets import open_images
from rar_jax.evaluation.nearest_images import compare_with_training
from rar_jax.evaluation.report import report_folder
from rar_jax.generation.job_folder import job_images
from rar_jax.run_folder import check_folder

_SAMPLES = flags.DEFINE_string("samples", None, "Samples: an .npz (arr_0), a folder, or a sampling job.")
_TRAINING = flags.DEFINE_string("training", None, "Training images: an .npz or a folder.")
_HELDOUT = flags.DEFINE_string(
    "heldout", None, "Held-out images, whose reconstructions are compared in the same way: an .npz or a folder."
)
_TOKENIZER, _IMAGE_SIZE = shared_flags.define_tokenizer()
_OUT = flags.DEFINE_string("out", None, "Folder of the report. Default: evaluation/nearest beside the samples.")


def main(argv):
    del argv
    cli.keep_compiled_programs()
    for holder in (_SAMPLES, _TRAINING, _HELDOUT, _TOKENIZER):
        if not holder.value:
            raise UserError(f"--{holder.name} is missing: name --samples, --training, --heldout and --tokenizer")
    out = epath.Path(_OUT.value or report_folder(_SAMPLES.value, "nearest"))
    check_folder("out", out)
    paths = [job_images(each.value) for each in (_SAMPLES, _TRAINING, _HELDOUT)]
    for path in paths:
        check_outside(path, "--out", out)
    # Before the images are listed, which takes minutes on a network disk.
    tokenizer = open_tokenizer(_TOKENIZER.value, _IMAGE_SIZE.value)
    compare_with_training(*(open_images(path, _IMAGE_SIZE.value) for path in paths), tokenizer, out)
