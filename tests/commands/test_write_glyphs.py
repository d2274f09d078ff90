import numpy as np
import pytest
from PIL import Image
from running import call, refusal

from rar_jax.data.glyphs import glyph_images
from rar_jax.data.sources import ClassFolders


def test_the_files_hold_the_images_and_their_classes(tmp_path):
    flags = [f"--output={tmp_path / 'glyphs'}", "--num=40", "--num_classes=36", "--split=unseen_faces"]
    assert call("write_glyphs", *flags).returncode == 0
    images, labels = glyph_images("unseen_faces", np.arange(40), 36)
    written = {path.name: path for path in (tmp_path / "glyphs").glob("*/*.png")}
    for i, image in enumerate(images):
        np.testing.assert_array_equal(np.asarray(Image.open(written[f"{i:06d}.png"])), image)
    source = ClassFolders(tmp_path / "glyphs")
    examples = [source[i] for i in range(len(source))]
    assert len(examples) == 40
    for example in examples:
        assert labels[int(example.name[-10:-4])] == example.label


def test_the_work_resumes(tmp_path):
    flags = [f"--output={tmp_path}", "--num=12"]
    call("write_glyphs", *flags)
    kept, lost = tmp_path / "1" / "000001.png", tmp_path / "3" / "000003.png"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    result = call("write_glyphs", *flags)
    assert result.stdout == f"{tmp_path}: 12 images of 10 classes\n"
    assert lost.exists() and kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(("flags", "message"), [
    ([], "name the folder to write with --output"),
    (["--output=setup.py"], "setup.py is a file"),
    (["--output=tests"], "--output=tests holds other files"),
    (["--output=out", "--num_classes=26"], "num_classes"),
])  # fmt: skip
def test_mistakes_with_write_glyphs(flags, message):
    assert message in refusal("write_glyphs", *flags)


def test_a_folder_of_other_glyphs_is_refused(tmp_path):
    call("write_glyphs", f"--output={tmp_path}", "--num=1")
    assert "split='train', not 'heldout'" in refusal(
        "write_glyphs", f"--output={tmp_path}", "--num=1", "--split=heldout"
    )
