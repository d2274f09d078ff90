import numpy as np
import pytest
from PIL import Image
from running import call, refusal

from rar_jax.data.pictures import center_square, read_picture


def test_reconstructions_are_drawn_below_their_images(scenes, vqgan_file, tmp_path):
    picture = tmp_path / "grid.png"
    options = [f"--images={scenes}", f"--tokenizer={vqgan_file}", "--image_size=64", "--num=10", "--workers=1"]
    drawn = call("reconstruct", f"--output={picture}", *options)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.startswith(f"{picture}: 10 images, below each its reconstruction (mean PSNR ")
    cells = np.asarray(Image.open(picture))
    first = center_square(read_picture((scenes / "china" / "000_000.jpg").read_bytes()), 64)
    np.testing.assert_array_equal(cells[2:66, 2:66], first)
    # There are two rows of images, each above its reconstructions; the second row has two images.
    assert cells.shape == (4 * 66 + 2, 8 * 66 + 2, 3)
    assert (cells[2 * 66 + 2 :, 2 * 66 + 2 :] == 255).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one of --images, --tfds, --glyphs; given: none"),
        (["--jsonl=a", "--tokenizer=digits"], "'jsonl'"),
        (["--images=tests", "--split=train"], "--split has no effect with --images: remove it"),
        (["--images=tests", "--num_classes=36"], "--num_classes has no effect with --images: remove it"),
        (["--glyphs=9", "--tokenizer=digits", "--output=a.png"], "--image_size=256 would enlarge the glyphs"),
        (["--images=tests"], "name the tokenizer with --tokenizer=WEIGHTS"),
        (["--images=tests", "--output=out", "--tokenizer=digits"], "--output=out must be a .png file"),
        (["--images=tests", "--output=setup.py/a.png", "--tokenizer=digits"], "setup.py is a file, not a folder"),
        (["--images=nothing", "--output=a.png", "--tokenizer=digits", "--image_size=8"], "files in 'nothing'"),
        (["--images=tests", "--output=tests/data/a.png", "--tokenizer=digits"], "lies in the images' folder tests"),
    ],
)
def test_mistakes_with_reconstruct(arguments, message):
    assert message in refusal("reconstruct", *arguments)
