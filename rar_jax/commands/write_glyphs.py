"""Writes the embedded glyphs as PNG files, in a folder for each class.

    python -m rar_jax write_glyphs --output=glyphs/train --num=20000
    python -m rar_jax write_glyphs --output=glyphs/heldout --num=3600 --split=heldout

If it is stopped, the same command resumes the work.
"""

from absl import flags
from etils import epath

from rar_jax.commands import shared_flags
from rar_jax.data.glyphs import IDENTITY, SPLITS, Glyphs
from rar_jax.errors import UserError
from rar_jax.files import begin_or_resume, replacing
from rar_jax.progress import Progress
from rar_jax.run_folder import check_folder

# Says which images the folder holds, so that a folder of others is not mixed with these.
_PLAN = "glyphs.json"

_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
_NUM = flags.DEFINE_integer("num", 20_000, "Number of images.", lower_bound=1)
_SPLIT = flags.DEFINE_enum(
    "split", "train", SPLITS, "Split: train, heldout (new draws of the same faces), or unseen_faces (other faces)."
)
_NUM_CLASSES = shared_flags.define_glyph_classes()


def main(argv):
    del argv
    if not _OUTPUT.value:
        raise UserError("name the folder to write with --output")
    check_folder("output", _OUTPUT.value)
    folder, source = epath.Path(_OUTPUT.value), Glyphs(_SPLIT.value, _NUM.value, int(_NUM_CLASSES.value))
    plan = {"glyphs": IDENTITY, "split": _SPLIT.value, "num": _NUM.value, "num_classes": _NUM_CLASSES.value}
    begin_or_resume("output", folder, _PLAN, plan)
    for name in source.class_names:
        (folder / name).mkdir(exist_ok=True)
    progress = Progress("write", len(source), unit="image")
    for i in range(len(source)):
        file = folder / source.class_names[i % len(source.class_names)] / f"{i:06d}.png"
        if not file.exists():
            data, _ = source[i].read()
            with replacing(file) as out:
                out.write(data)
        progress.update()
    progress.close()
    print(f"{folder}: {len(source)} images of {len(source.class_names)} classes")
