import numpy as np
import pytest
from PIL import Image

from rar_jax.data.image_check import check_images, class_folders, inspect
from rar_jax.errors import UserError


def picture(side=(40, 32), mode="RGB"):
    return Image.fromarray(np.arange(side[0] * side[1] * 3, dtype=np.uint8).reshape(side[1], side[0], 3)).convert(mode)


def fill(folder, count, **options):
    folder.mkdir(parents=True)
    for i in range(count):
        picture(**options).save(folder / f"{i:03d}.png")


@pytest.fixture
def pictures(tmp_path):
    """Two classes of 40 images, 40 x 32 pixels."""
    for name in ("cats", "dogs"):
        fill(tmp_path / name, 40)
    return tmp_path


def test_a_good_folder_has_no_problems(pictures):
    report = check_images(pictures, 32, lambda size: 8)
    assert report.problems == []
    assert report.summary == (
        f"{pictures}: 80 images of 2 classes, 40 each; the smallest has 40 x 32 pixels, the largest 40 x 32"
    )
    (note,) = report.notes
    assert note.startswith("images that are not square (only the centre is used): 80, such as ")


def test_a_flat_folder_is_one_class(pictures):
    assert {name: len(files) for name, files in class_folders(pictures / "cats").items()} == {"cats": 40}
    assert check_images(pictures / "cats", 32).problems[0].startswith(f"{pictures / 'cats'} has 40 images, too few")


def test_an_empty_folder_among_the_images_is_no_class(pictures):
    (pictures / "cats" / ".ipynb_checkpoints").mkdir()
    assert [*class_folders(pictures / "cats")] == ["cats"]
    assert not any("beside the class folders" in line for line in check_images(pictures / "cats", 32).problems)


def test_each_problem_has_a_line(pictures):
    (pictures / "empty").mkdir()
    fill(pictures / "one", 1)
    picture().save(pictures / "loose.png")
    (pictures / "cats" / "000.png").write_bytes((pictures / "cats" / "000.png").read_bytes()[:60])
    (pictures / "cats" / "001.jpg").write_bytes(b"not an image")
    picture((20, 24)).save(pictures / "dogs" / "small.jpg")
    problems = check_images(pictures, 32, lambda size: 5 if size > 19 else 4).problems
    expected = [
        "class 'empty' without .jpg, .jpeg, .png, .webp files: add images, or remove the folder",
        "class 'one' with a single image, so that none can be held out: add images",
        "1 images beside the class folders, such as loose.png: move them into classes",
        f"1 images are smaller than --image_size=32 and would be enlarged, such as {pictures / 'dogs' / 'small.jpg'} "
        "(20 x 24 pixels): choose --image_size=20, or remove them",
        "--image_size=32 is not a multiple of 5, the downsampling of the tokenizer: choose --image_size=30",
    ]
    assert problems[:5] == expected
    assert problems[5].startswith(f"{pictures / 'cats' / '000.png'} cannot be read: ")
    assert problems[6] == f"{pictures / 'cats' / '001.jpg'} cannot be read: it is not an image; remove it, or repair it"
    assert len(problems) == 7


def test_many_unreadable_files_are_counted(pictures):
    for i in range(12):
        (pictures / "cats" / f"{i:03d}.png").write_bytes(b"")
    problems = check_images(pictures, 32).problems
    assert len(problems) == 11 and problems[-1] == "2 more images cannot be read"


def test_unusual_images_are_noted(pictures):
    picture((32, 32), "CMYK").save(pictures / "cats" / "print.jpg")
    frames = [picture((32, 32)), picture((32, 32)).rotate(90)]
    frames[0].save(pictures / "dogs" / "moving.webp", save_all=True, append_images=frames[1:])
    (pictures / "dogs" / "notes.txt").write_text("text")
    notes = "\n".join(check_images(pictures, 32).notes)
    for line in (
        f"CMYK images, converted to RGB without their colour profile: 1, such as {pictures}/cats/print.jpg",
        f"animated images (only the first frame is used): 1, such as {pictures}/dogs/moving.webp",
        f"files left out, which are not .jpg, .jpeg, .png, .webp: 1, such as {pictures}/dogs/notes.txt",
    ):
        assert line in notes


def test_a_rotated_photograph_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture((40, 32)).save(tmp_path / "a.jpg", exif=exif)
    assert inspect(tmp_path / "a.jpg").size == (32, 40)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        class_folders(tmp_path / "nothing")
    (tmp_path / "cats").mkdir()
    with pytest.raises(UserError, match=r"no \.jpg"):
        class_folders(tmp_path)
