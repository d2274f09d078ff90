import numpy as np
import pytest
from sklearn.datasets import load_digits

from rar_jax.data.digits import DigitsTokenizer, digits_split, write_digits
from rar_jax.data.records import TokenRecords
from rar_jax.errors import UserError


def test_the_split_is_stratified_and_loses_nothing():
    (train, train_labels), (heldout, heldout_labels) = map(digits_split, ("train", "heldout"))
    assert len(train) == 1437 and len(heldout) == 360
    share = np.bincount(heldout_labels) / np.bincount(np.concatenate([train_labels, heldout_labels]))
    assert (np.abs(share - 0.2) < 0.01).all()
    ours = np.concatenate([train, heldout])[..., 0].reshape(1797, 64)
    theirs = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, theirs))


def test_tokens_and_images_convert_both_ways():
    tokenizer = DigitsTokenizer()
    tokens = np.random.default_rng(0).integers(17, size=(5, 64))
    images = tokenizer.decode(tokens)
    assert images.shape == (5, 8, 8, 3) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255
    np.testing.assert_array_equal(tokenizer.encode(images), tokens)


def test_records_hold_the_split(tmp_path):
    folders = write_digits(tmp_path)
    again = write_digits(tmp_path)
    assert again == folders
    for split, folder in folders.items():
        images, labels = digits_split(split)
        batch = TokenRecords(folder).read(np.arange(len(images)))
        np.testing.assert_array_equal(DigitsTokenizer().decode(batch["tokens"]), images)
        np.testing.assert_array_equal(batch["label"], labels)
    assert {path.name for path in tmp_path.iterdir()} == {"train", "heldout"}


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no token records"):
        write_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
