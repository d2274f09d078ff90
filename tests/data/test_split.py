import os

import pytest
from PIL import Image

from rar_jax.data.sources import ClassFolders
from rar_jax.data.split import split_images
from rar_jax.errors import UserError


@pytest.fixture
def pictures(tmp_path):
    """Class folders with 20, 7 and 2 images. Each image has its own grey level."""
    for level, (name, count) in enumerate((("a", 20), ("b", 7), ("c", 2))):
        for i in range(count):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 50 * level + i).save(tmp_path / "images" / name / f"{i}.PNG")
    return tmp_path / "images"


def names(folder):
    return sorted(path.resolve().relative_to(folder.parents[1] / "images").as_posix() for path in folder.rglob("*.png"))


def test_each_class_is_divided(pictures, tmp_path):
    assert split_images(pictures, tmp_path / "split", 0.2) == {"train": 23, "heldout": 6}
    train, heldout = (names(tmp_path / "split" / part) for part in ("train", "heldout"))
    assert sorted(train + heldout) == sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.PNG"))
    assert [sum(name.startswith(letter) for name in heldout) for letter in "abc"] == [4, 1, 1]
    assert ClassFolders(tmp_path / "split" / "heldout").class_names == ("a", "b", "c")


def test_an_interrupted_split_is_completed(pictures, tmp_path):
    split_images(pictures, tmp_path / "split", 0.2)
    whole = names(tmp_path / "split" / "train")
    for link in sorted((tmp_path / "split" / "train").rglob("*.png"))[::2]:
        link.unlink()
    split_images(pictures, tmp_path / "split", 0.2)
    assert names(tmp_path / "split" / "train") == whole


def test_names_that_are_not_utf_8_and_relative_paths(pictures, tmp_path, monkeypatch):
    os.rename(pictures / "c" / "0.PNG", os.fsencode(pictures / "c") + b"/caf\xe9.PNG")
    counts = split_images(pictures, tmp_path / "split", 0.2)
    monkeypatch.chdir(tmp_path)
    assert split_images("images", tmp_path / "split", 0.2) == counts == {"train": 23, "heldout": 6}


def test_a_class_keeps_an_image_to_train_on(pictures, tmp_path):
    assert split_images(pictures, tmp_path / "split", 0.9) == {"train": 2 + 1 + 1, "heldout": 18 + 6 + 1}


def test_another_split_is_refused(pictures, tmp_path):
    split_images(pictures, tmp_path / "split", 0.2)
    with pytest.raises(UserError, match=r"was started with holdout=0.2, not 0.5"):
        split_images(pictures, tmp_path / "split", 0.5)
    (pictures / "c" / "0.PNG").unlink()
    with pytest.raises(UserError, match=r"was started with listing="):
        split_images(pictures, tmp_path / "split", 0.2)
    with pytest.raises(UserError, match="holds other files"):
        split_images(pictures, pictures.parent, 0.2)


@pytest.mark.parametrize("output", ["images", "images/split", "images/a/split"])
def test_a_split_among_its_images_is_refused(pictures, tmp_path, output):
    with pytest.raises(UserError, match=r"--output=.* lies in the images' folder .*: choose a folder outside it"):
        split_images(pictures, tmp_path / output, 0.2)


def test_a_bucket_has_no_links(pictures, tmp_path):
    with pytest.raises(UserError, match=r"--images=gs://bucket/images: the split consists of links, .*: mount it"):
        split_images("gs://bucket/images", tmp_path / "split", 0.2)
    with pytest.raises(UserError, match="--output=gs://bucket/split: "):
        split_images(pictures, "gs://bucket/split", 0.2)


def test_a_flat_folder_is_one_class(pictures, tmp_path):
    assert split_images(pictures / "a", tmp_path / "split", 0.1) == {"train": 18, "heldout": 2}
    assert ClassFolders(tmp_path / "split" / "train").class_names == ("a",)
