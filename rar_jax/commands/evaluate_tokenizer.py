"""Scores a tokenizer by its reconstructions: rFID, PSNR, SSIM and the use of its codebook.

python -m rar_jax evaluate_tokenizer --images=FOLDER --tokenizer=WEIGHTS --inception=WEIGHTS
python -m rar_jax evaluate_tokenizer --glyphs=3600 --image_size=32 --tokenizer=RUN --features=glyphs
"""

from absl import flags
from etils import epath

from rar_jax.commands import cli, shared_flags
from rar_jax.data.glyphs import SPLITS
from rar_jax.data.sources import check_outside
from rar_jax.data.tokenizers import open_tokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.evaluate import evaluate_tokenizer
from rar_jax.evaluation.features import open_extractor
from rar_jax.evaluation.image_sets import glyph_set, open_images
from rar_jax.evaluation.report import report_folder
from rar_jax.generation.job_folder import job_images
from rar_jax.run_folder import check_folder

_IMAGES = flags.DEFINE_string("images", None, "Images to reconstruct: a folder, an .npz (arr_0), or a sampling job.")
_GLYPHS, _NUM_CLASSES = shared_flags.define_glyphs(), shared_flags.define_glyph_classes()
_SPLIT = flags.DEFINE_enum("split", "unseen_faces", SPLITS, "Split of the glyphs.")
_TOKENIZER, _IMAGE_SIZE = shared_flags.define_tokenizer()
_FEATURES, _INCEPTION = shared_flags.define_features()
_NUM = flags.DEFINE_integer("num", None, "Number of images to use, from the first on. Default: all.", lower_bound=2)
_KIND = shared_flags.define_reference_kind()
_OUT = flags.DEFINE_string(
    "out",
    None,
    "Folder of the report. Default: evaluation/NAME beside the images or, with --glyphs, beside the tokenizer.",
)


def main(argv):
    del argv
    cli.keep_compiled_programs()
    source = shared_flags.name_one((_IMAGES, _GLYPHS))
    if not _TOKENIZER.value:
        raise UserError("name the tokenizer with --tokenizer=WEIGHTS")
    if source == "glyphs":
        shared_flags.check_glyph_size(_IMAGE_SIZE.value)
    else:
        shared_flags.refuse((_SPLIT, _NUM_CLASSES), source)
    out = epath.Path(_OUT.value or report_folder(_IMAGES.value or _TOKENIZER.value))
    check_folder("out", out)
    if source == "images":
        check_outside(job_images(_IMAGES.value), "--out", out)
    # Before the images are listed, which takes minutes on a network disk.
    extractor = open_extractor(_FEATURES.value, _INCEPTION.value)
    tokenizer = open_tokenizer(_TOKENIZER.value, _IMAGE_SIZE.value)
    if source == "glyphs":
        images = glyph_set(_SPLIT.value, _GLYPHS.value, int(_NUM_CLASSES.value), _IMAGE_SIZE.value)
    else:
        images = open_images(job_images(_IMAGES.value), _IMAGE_SIZE.value)
    evaluate_tokenizer(images, tokenizer, extractor, out, num=_NUM.value, reference_kind=_KIND.value)
