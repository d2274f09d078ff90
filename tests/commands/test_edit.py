import numpy as np
import pytest
from PIL import Image
from running import call, refusal, write_run

from rar_jax.data.digits import digits_split
from rar_jax.images.files import write_png


@pytest.fixture(scope="module")
def folder(small_config, tmp_path_factory):
    """A folder with a run, two images of digits and a smaller image."""
    folder = tmp_path_factory.mktemp("edit")
    write_run(folder / "run", small_config(model={"depth": 1}))
    images, _ = digits_split("heldout")
    for name, image in (("a", images[0]), ("b", images[1]), ("small", images[2][:4, :5])):
        write_png(folder / f"{name}.png", image)
    return folder


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def edit(folder, out, *options):
    result = call("edit", f"--checkpoint={folder / 'run'}", f"--out={out}", "--classes=3", *options)
    assert result.returncode == 0, result.stderr
    return {path.name: read(path) for path in sorted((out / "edited").iterdir())}


def test_a_box_is_drawn_again_and_the_rest_is_kept(folder, tmp_path, caplog):
    caplog.set_level("INFO", "rar_jax")
    images = f"--images={folder / 'a.png'},{folder / 'b.png'}"
    results = edit(folder, tmp_path, images, "--box=0,2,4,8", "--results=2")
    assert [*results] == ["000_000.png", "000_001.png", "001_000.png", "001_001.png"] and "edit 4/4, " in caplog.text
    for name, result in results.items():
        original = read(folder / ("a.png" if name.startswith("000") else "b.png"))
        changed = (result != original).any(axis=2)
        assert changed[:4, 2:].any() and not changed[4:].any() and not changed[:, :2].any()
    # Results of the command before do not stay.
    assert [*edit(folder, tmp_path, f"--images={folder / 'a.png'}", "--box=0,2,4,8", "--results=1")] == ["000_000.png"]


def test_inputs_and_files_of_others_stay(folder, tmp_path):
    (result,) = edit(folder, tmp_path, f"--images={folder / 'a.png'}", "--box=0,2,4,8", "--results=1")
    photo = tmp_path / "edited" / "20240131_142233.png"
    write_png(photo, np.zeros((8, 8, 3), np.uint8))
    flags = [f"--checkpoint={folder / 'run'}", f"--out={tmp_path}", "--classes=3", "--box=0,2,4,8"]
    refused = refusal("edit", *flags, f"--images={tmp_path / 'edited' / result}")
    assert f"{result} lies where the results are written: choose another --out, or copy it" in refused
    (tmp_path / "link").symlink_to(tmp_path)
    for file in (tmp_path / "edit.png", tmp_path / "link" / "edited" / result):
        assert "lies where the results are written" in refusal("edit", *flags, f"--images={file}")
    edit(folder, tmp_path, f"--images={folder / 'b.png'}", "--box=0,2,4,8", "--results=1")
    assert photo.exists()


def test_a_smaller_image_is_placed_on_the_canvas(folder, tmp_path):
    (result,) = edit(folder, tmp_path, f"--images={folder / 'small.png'}", "--place=1,2", "--results=1").values()
    np.testing.assert_array_equal(result[1:5, 2:7], read(folder / "small.png"))


def test_a_mask_must_cover_something(folder):
    write_png(folder / "dark.png", np.zeros((8, 8, 3), np.uint8))
    flags = [f"--checkpoint={folder / 'run'}", f"--images={folder / 'a.png'}", "--classes=3"]
    assert "--mask=nothing.png: there is no such file" in refusal("edit", *flags, "--mask=nothing.png")
    told = refusal("edit", *flags, f"--mask={folder / 'dark.png'}")
    assert "a.png is masked: use a --mask with light pixels" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to draw with --mask=FILE"),
        (["--box=1,2,3"], "--box=1,2,3 must be 4 integers"),
        (["--box=1,2,3,x"], "--box=1,2,3,x must be 4 integers"),
        (["--box=0,0,4,4", "--mask=m.png"], "--mask=m.png and --box=0,0,4,4 both say what to draw: give only one"),
        (["--box=0,0,4,4", "--classes=1,2"], "--classes has 2 classes for 1 images"),
        (["--box=0,0,4,4"], "--images=a.png: there is no such file"),
    ],
)
def test_mistakes(options, message):
    assert message in refusal("edit", "--checkpoint=run", "--images=a.png", "--classes=3", *options)
