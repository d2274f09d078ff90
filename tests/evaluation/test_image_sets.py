import numpy as np
import pytest
from PIL import Image

from rar_jax.data.pictures import center_square, read_picture
from rar_jax.errors import UserError
from rar_jax.evaluation.image_sets import NpzImages, chosen, open_images, spread_order, take
from rar_jax.images.files import write_png


def random_images(count, height=5, width=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_in_batches(tmp_path, save):
    images = random_images(7)
    save(tmp_path / "a.npz", arr_0=images, arr_1=np.arange(7))
    found = open_images(tmp_path / "a.npz")
    assert (len(found), found.size, found.labels.tolist()) == (7, (5, 6), list(range(7)))
    batches = list(found.batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(batches), images)
    np.testing.assert_array_equal(take(found, [5, 0, 5]), images[[5, 0, 5]])


def test_only_the_images_that_are_taken_from_a_folder_are_read(tmp_path):
    images = random_images(6)
    for number, image in enumerate(images):
        write_png(tmp_path / f"{number}.png", image)
    (tmp_path / "4.png").write_bytes(b"damaged")
    found = open_images(tmp_path)
    np.testing.assert_array_equal(take(found, [5, 0, 5]), images[[5, 0, 5]])
    with pytest.raises(UserError, match=r"4\.png"):
        take(found, [4])


def test_npz_without_usable_labels(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=random_images(3))
    np.savez(tmp_path / "b.npz", arr_0=random_images(3), arr_1=np.arange(2))
    assert open_images(tmp_path / "a.npz").labels is None and open_images(tmp_path / "b.npz").labels is None


@pytest.mark.parametrize("channels", [(), (1,)])
def test_grey_gets_three_equal_channels(tmp_path, channels):
    grey = random_images(4)[..., :1]
    np.savez(tmp_path / "a.npz", grey.reshape(4, 5, 6, *channels))
    found = open_images(tmp_path / "a.npz")
    assert found.treatment == "grey to three equal channels"
    np.testing.assert_array_equal(np.concatenate(list(found.batches(3))), grey.repeat(3, axis=3))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (random_images(2) / 255, r"float64, from 0 to 0\.9\d+; images must be uint8 from 0 to 255: convert"),
        (np.array([[[[0.5, np.nan, 1]]]], np.float32), r"float32, from 0\.5 to 1, and some of it not finite; images"),
        (random_images(2)[0, 0], r"arr_0 has shape \[6, 3\]; images must be \[N, H, W, 3\]"),
        (random_images(2).transpose(0, 3, 1, 2), r"arr_0 has shape \[2, 3, 5, 6\]; images must be"),
        (random_images(0), r"arr_0 has shape \[0, 5, 6, 3\]"),
        (np.asfortranarray(random_images(2)), "in Fortran order"),
        (np.array([None, "cat"]), r"a\.npz: arr_0 is object; images must be uint8"),
    ],
)
def test_arrays_that_are_not_images(tmp_path, array, message):
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / "a.npz")


def test_files_that_are_not_npz(tmp_path):
    (tmp_path / "a.txt").touch()
    for path, message in (("no", "there is no such file or folder"), ("a.txt", "it must be a folder or an .npz")):
        with pytest.raises(UserError, match=message):
            open_images(tmp_path / path)
    np.savez(tmp_path / "a.npz", images=random_images(2))
    with pytest.raises(UserError, match="has no arr_0"):
        open_images(tmp_path / "a.npz")


@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_truncated_npz(tmp_path, kept):
    np.savez(tmp_path / "a.npz", random_images(90))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:kept])
    with pytest.raises(UserError, match=r"a\.npz is not a whole \.npz file"):
        open_images(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_within_an_npz(tmp_path, save):
    save(tmp_path / "a.npz", random_images(90))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[4000:4010] = bytes(10)
    (tmp_path / "a.npz").write_bytes(data)
    images = NpzImages(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"a\.npz is not a whole \.npz file"):
        list(images.batches(32))


def test_folder(tmp_path):
    images = random_images(150)
    for i, image in enumerate(images):
        write_png(tmp_path / "images" / f"{i:06d}.png", image)
    found = open_images(tmp_path)
    assert (len(found), found.size, found.labels) == (150, (5, 6), None)
    batches = list(found.batches(64))
    assert [len(batch) for batch in batches] == [64, 64, 22]
    np.testing.assert_array_equal(np.concatenate(batches), images)


def test_folders_are_classes_only_if_every_image_is_in_one(tmp_path):
    for name, count in (("cat", 2), ("ant", 3)):
        for i, image in enumerate(random_images(count)):
            write_png(tmp_path / name / f"{i}.png", image)
    found = open_images(tmp_path)
    # The classes are interleaved, and the images of a class are sorted by name.
    assert found.labels.tolist() == [0, 1, 0, 1, 0]
    ants, cats = random_images(3), random_images(2)
    np.testing.assert_array_equal(np.concatenate(list(found.batches(2))), [ants[0], cats[0], ants[1], cats[1], ants[2]])
    write_png(tmp_path / "b.png", random_images(1)[0])
    assert open_images(tmp_path).labels is None
    # The characters of the glyphs keep their labels, also if some are missing.
    for name, image in zip("3B", random_images(2), strict=True):
        write_png(tmp_path / "glyphs" / name / "0.png", image)
    assert open_images(tmp_path / "glyphs").labels.tolist() == [3, 11]


def test_every_stretch_of_class_folders_has_the_classes_in_proportion():
    labels = np.repeat(np.arange(30), np.random.default_rng(0).integers(50, 200, 30))
    order = spread_order(labels)
    assert sorted(order) == list(range(len(labels)))
    shares = np.bincount(labels) / len(labels)
    for start in range(0, len(labels) - 500, 500):
        counts = np.bincount(labels[order[start : start + 500]], minlength=30)
        np.testing.assert_allclose(counts, 500 * shares, atol=1)


def test_some_images_of_a_set(tmp_path):
    images = random_images(150)
    np.savez(tmp_path / "a.npz", images)
    places = np.array([0, 3, *range(60, 100), 148])
    batches = list(chosen(open_images(tmp_path / "a.npz"), places, 16))
    assert [len(batch) for batch in batches] == [16, 16, 11]
    np.testing.assert_array_equal(np.concatenate(batches), images[places])


def test_mixed_sizes_are_refused_or_cut(tmp_path):
    write_png(tmp_path / "a.png", random_images(1, 9, 20)[0])
    Image.fromarray(random_images(1, 12, 11)[0][..., 0]).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png is 11 x 12 pixels, but .*a\.png is 20 x 9: cut all to one size with"):
        list(open_images(tmp_path).batches(2))
    cut = open_images(tmp_path, image_size=8)
    assert cut.treatment == "ADM centre crop to 8"
    (batch,) = cut.batches(2)
    expected = [center_square(read_picture((tmp_path / name).read_bytes()), 8) for name in ("a.png", "b.png")]
    np.testing.assert_array_equal(batch, expected)
    np.savez(tmp_path / "a.npz", random_images(2))
    with pytest.raises(UserError, match="6 x 5, and only images of folders are cut to --image_size=8: set it to"):
        open_images(tmp_path / "a.npz", image_size=8)


def test_the_error_names_an_unreadable_image(tmp_path):
    write_png(tmp_path / "a.png", random_images(1)[0])
    (tmp_path / "b.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"b\.png: it is not an image"):
        list(open_images(tmp_path).batches(2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.jpg, \.jpeg, \.png, \.webp files in"):
        open_images(tmp_path / "empty")
