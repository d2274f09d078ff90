import hashlib

import numpy as np
import pytest

from rar_jax.data import glyphs
from rar_jax.data.glyphs import IDENTITY, SPLITS, Glyphs, class_names, glyph_images
from rar_jax.data.pictures import read_picture
from rar_jax.errors import UserError


def test_the_bytes_are_the_same_on_every_machine():
    """If the images change on purpose, `IDENTITY` must change, because results in caches are stored under it."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(glyph_images(split, np.arange(100), 36)[0].tobytes())
    assert digest.hexdigest()[:12] == IDENTITY


def test_an_image_depends_on_its_split_and_number_alone():
    images, labels = glyph_images("train", np.arange(300))
    some = [299, 3, 256, 3]
    again, again_labels = glyph_images("train", some)
    np.testing.assert_array_equal(again, images[some])
    np.testing.assert_array_equal(again_labels, labels[some])
    assert images.shape == (300, 32, 32, 3) and images.dtype == np.uint8 and labels.dtype == np.int32


@pytest.mark.parametrize("num_classes", [10, 36])
def test_classes_are_equally_frequent(num_classes):
    _, labels = glyph_images("heldout", np.arange(2 * num_classes), num_classes)
    np.testing.assert_array_equal(np.bincount(labels), np.full(num_classes, 2))
    assert class_names(num_classes)[-1] == {10: "9", 36: "Z"}[num_classes]


def test_splits_share_neither_draws_nor_held_out_faces():
    everything = [bytes(image) for split in SPLITS for image in glyph_images(split, np.arange(200))[0]]
    assert len(set(everything)) == 600
    faces = {split: set(glyphs._SPLITS[split][1]) for split in SPLITS}
    assert faces["train"] == faces["heldout"] and not faces["train"] & faces["unseen_faces"]
    assert [len(faces[split]) for split in SPLITS] == [18, 18, 4]


def test_draws_are_uniform_and_independent():
    draws = glyphs._draws(0, np.arange(5000))
    assert draws.min() >= 0 and draws.max() < 1
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=0.02)
    correlation = np.corrcoef(draws.T) - np.eye(draws.shape[1])
    assert np.abs(correlation).max() < 0.07
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.05


def test_characters_differ_from_their_background():
    pairs = np.array([[[[0.5] * 3, [0.6] * 3], [[0.1] * 3, [0.9] * 3], [[0.0] * 3, [1.0] * 3]]])
    background, foreground = glyphs._contrasting(pairs)
    np.testing.assert_array_equal([background[0], foreground[0]], pairs[0, 1])
    background, foreground = glyphs._contrasting(pairs[:, :1])
    np.testing.assert_array_equal([background[0], foreground[0]], pairs[0, 0])


def test_the_rotation_is_a_rotation():
    half = np.tan(np.deg2rad([-6, 0, 45]))
    angle = 2 * np.arctan(half)
    np.testing.assert_allclose(glyphs._rotation(half), [np.cos(angle), np.sin(angle)], atol=1e-12)
    assert np.rad2deg(2 * np.arctan(glyphs._MAX_HALF_TANGENT)) == pytest.approx(12, abs=0.01)


@pytest.mark.parametrize("arguments, message", [
    (("test", [0]), "no split 'test': choose one of train, heldout, unseen_faces"),
    (("train", [0], 26), "num_classes=26: the glyphs have 10 classes"),
])  # fmt: skip
def test_what_does_not_exist_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        glyph_images(*arguments)


def test_the_source_reads_the_images():
    source = Glyphs("unseen_faces", 12, 36)
    assert len(source) == 12 and source.class_names == class_names(36)
    data, label = source[11].read()
    (image,), (expected,) = glyph_images("unseen_faces", [11], 36)
    np.testing.assert_array_equal(np.asarray(read_picture(data)), image)
    assert label == expected
    assert source[11].name == "glyphs/unseen_faces[11]"
