import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from rar_jax.data.pictures import center_square, cut_crops, random_square, read_picture, square_side
from rar_jax.errors import UserError


@pytest.fixture(scope="module")
def china():
    """A real photograph, uint8 [427, 640, 3]."""
    return load_sample_image("china.jpg")


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def adm_center_crop(image, side):
    """ADM's centre crop, written step by step as in ADM's code."""
    while min(*image.size) >= 2 * side:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = side / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC)
    pixels = np.array(image)
    y, x = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[y : y + side, x : x + side]


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (512, 512), (1300, 513), (300, 256), (100, 90), (257, 255)])
@pytest.mark.parametrize("side", [64, 256])
def test_the_centre_crop_is_adms_pixel_for_pixel(china, size, side):
    image = Image.fromarray(china).resize(size)
    np.testing.assert_array_equal(center_square(image, side), adm_center_crop(image, side))


def test_ten_crops():
    assert square_side("ten", 256) == 281 and square_side("center", 256) == 256
    square = np.random.default_rng(0).integers(256, size=(281, 281, 3), dtype=np.uint8)
    crops = cut_crops(square, 256, "ten", flip=False)
    corners = [square[12:268, 12:268], square[:256, :256], square[:256, 25:], square[25:, :256], square[25:, 25:]]
    np.testing.assert_array_equal(crops[:5], corners)
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])


def test_centre_with_and_without_its_mirror():
    square = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(cut_crops(square, 8, "center", flip=False), square[None])
    np.testing.assert_array_equal(cut_crops(square, 8, "center", flip=True), [square, square[:, ::-1]])


def test_every_kind_of_file(china):
    image = Image.fromarray(china[:64, :64])
    expected = np.asarray(image)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {})):
        np.testing.assert_array_equal(np.asarray(read_picture(encoded(image, kind, **options))), expected)
    jpeg = np.asarray(read_picture(encoded(image, "JPEG", quality=95))).astype(int)
    assert np.abs(jpeg - expected).mean() < 4


def test_grey_cmyk_and_palette(china):
    image = Image.fromarray(china[:64, :64])
    grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(np.asarray(read_picture(encoded(image.convert("L")))), grey[..., None].repeat(3, -1))
    cmyk = np.asarray(read_picture(encoded(image.convert("CMYK"), "JPEG", quality=95))).astype(int)
    assert np.abs(cmyk - np.asarray(image)).mean() < 4
    palette = image.quantize(64)
    np.testing.assert_array_equal(np.asarray(read_picture(encoded(palette))), np.asarray(palette.convert("RGB")))
    black_and_white = np.asarray(read_picture(encoded(image.convert("1"))))
    assert set(np.unique(black_and_white)) == {0, 255}


def test_sixteen_bits_are_scaled_not_cut_off():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    picture = np.asarray(read_picture(encoded(Image.fromarray(ramp))))
    np.testing.assert_array_equal(picture[..., 0].ravel(), np.arange(256))


def test_transparency_is_blended_with_white():
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[:, :, 0], rgba[:, 0, 3], rgba[:, 1, 3] = 200, 255, 128
    picture = np.asarray(read_picture(encoded(Image.fromarray(rgba))))
    np.testing.assert_array_equal(picture[0], [[200, 0, 0], [227, 127, 127], [255, 255, 255]])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    picture = np.asarray(read_picture(encoded(palette, transparency=1)))
    np.testing.assert_array_equal(picture[0], [[10, 20, 30], [255, 255, 255]])


@pytest.mark.parametrize(
    ("orientation", "turn"), [(1, lambda x: x), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1))]
)
def test_exif_rotation(china, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(china[:32, :48]), "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_picture(data)), turn(china[:32, :48]))


def test_unusable_files_are_refused_with_the_reason(china):
    jpeg = encoded(Image.fromarray(china), "JPEG")
    for data, reason in ((b"", "it is empty"), (b"hello", "not an image"), (jpeg[: len(jpeg) // 2], "truncated")):
        with pytest.raises(UserError, match=reason):
            read_picture(data)


def test_random_squares_are_uniform_in_place_size_and_direction():
    """The pixels of the picture are their own coordinates, so that the corners of a square show where it was cut."""
    height, width = 40, 60
    rows, columns = np.mgrid[:height, :width]
    picture = Image.fromarray(np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8))
    rng = np.random.default_rng(0)
    sides, places, mirrored = [], [], []
    for _ in range(3000):
        cut = random_square(picture, 20, 0.5, True, rng).astype(float)
        assert cut.shape == (20, 20, 3)
        top, bottom, ends = cut[0, 0, 0], cut[-1, 0, 0], cut[0, [0, -1], 1]
        # The first and the last pixel of the result are half a pixel of the result from the borders.
        side = (bottom - top) * 20 / 19
        sides.append(side)
        places.append(((top + bottom) / 2, ends.mean(), side))
        mirrored.append(ends[0] > ends[1])
    assert abs(np.mean(mirrored) - 0.5) < 0.03
    counts, _ = np.histogram(sides, bins=4, range=(19.5, 40.5))
    assert counts.min() > 0.8 * 3000 / 4 and counts.max() < 1.2 * 3000 / 4
    # The relative place of a square among all its places is uniform in both directions.
    middle_row, middle_column, side = np.array(places).T
    for middle, size in ((middle_row, height), (middle_column, width)):
        far = side < 30
        relative = ((middle[far] + 0.5 - side[far] / 2) / (size - side[far])).clip(0, 0.999)
        counts, _ = np.histogram(relative, bins=4, range=(0, 1))
        assert counts.min() > 0.8 * far.sum() / 4 and counts.max() < 1.2 * far.sum() / 4


def test_the_whole_square_of_an_image_is_not_resampled():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    cut = random_square(Image.fromarray(pixels), 8, 1.0, False, np.random.default_rng(1))
    np.testing.assert_array_equal(cut, pixels)
