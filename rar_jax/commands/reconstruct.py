"""Draws images above their reconstructions by a tokenizer.

python -m rar_jax reconstruct --images=FOLDER --tokenizer=WEIGHTS --output=grid.png
python -m rar_jax reconstruct --glyphs=3600 --split=unseen_faces --image_size=32 --tokenizer=RUN --output=grid.png
"""

from absl import flags
from etils import epath

from rar_jax.commands import cli, shared_flags
from rar_jax.data.glyphs import Glyphs
from rar_jax.data.sources import ImageFolder, TfdsImages, check_outside
from rar_jax.data.tokenizers import open_tokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.token_pictures import draw_reconstructions
from rar_jax.files import printable
from rar_jax.images.files import write_png

_IMAGES, _TFDS, _SPLIT, _DATA_DIR = shared_flags.define_source("Folder of JPEG, PNG or WebP images.")
_GLYPHS, _NUM_CLASSES = shared_flags.define_glyphs(), shared_flags.define_glyph_classes()
_TOKENIZER, _IMAGE_SIZE = shared_flags.define_tokenizer()
_NUM = flags.DEFINE_integer("num", 32, "Number of images, evenly spaced over all.", lower_bound=1)
_WORKERS = shared_flags.define_workers()
_OUTPUT = shared_flags.define_picture()


def main(argv):
    del argv
    cli.keep_compiled_programs()
    source = shared_flags.name_one((_IMAGES, _TFDS, _GLYPHS))
    unused = {"images": (_SPLIT, _DATA_DIR, _NUM_CLASSES), "tfds": (_NUM_CLASSES,), "glyphs": (_DATA_DIR,)}
    shared_flags.refuse(unused[source], source)
    shared_flags.check_picture(_OUTPUT.value)
    if source == "images":
        check_outside(_IMAGES.value, "--output", epath.Path(_OUTPUT.value).parent)
    if not _TOKENIZER.value:
        raise UserError("name the tokenizer with --tokenizer=WEIGHTS")
    if _GLYPHS.value:
        shared_flags.check_glyph_size(_IMAGE_SIZE.value)
    # Before the images are listed, which takes minutes on a network disk.
    tokenizer = open_tokenizer(_TOKENIZER.value, _IMAGE_SIZE.value)
    if _GLYPHS.value:
        images = Glyphs(_SPLIT.value, _GLYPHS.value, int(_NUM_CLASSES.value))
    else:
        images = TfdsImages(_TFDS.value, _SPLIT.value, _DATA_DIR.value) if _TFDS.value else ImageFolder(_IMAGES.value)
    drawn = draw_reconstructions(images, tokenizer, _IMAGE_SIZE.value, _NUM.value, _WORKERS.value)
    write_png(_OUTPUT.value, drawn.picture)
    for rejected in drawn.rejected:
        print(f"left out: {printable(rejected.name)}: {rejected.reason}")
    print(f"{_OUTPUT.value}: {drawn.count} images, below each its reconstruction (mean PSNR {drawn.psnr:.2f} dB)")
