import numpy as np
import pytest
from PIL import Image

from rar_jax.images.files import image_grid, write_animation, write_png


def test_a_grid_shows_images_line_by_line():
    images = np.zeros((5, 72, 72, 3), np.uint8)
    images[:] = np.arange(10, 60, 10)[:, None, None, None]
    grid = image_grid(images, columns=3)
    gap = 3
    assert grid.shape == (2 * 72 + 3 * gap, 3 * 72 + 4 * gap, 3)
    assert (grid[:gap] == 255).all() and (grid[:, :gap] == 255).all()
    for i in range(5):
        top, left = gap + (i // 3) * 75, gap + (i % 3) * 75
        assert (grid[top : top + 72, left : left + 72] == 10 * (i + 1)).all()
    assert (grid[78:, 153:] == 255).all()


def test_tiny_images_are_enlarged():
    images = np.zeros((1, 8, 8, 3), np.uint8)
    images[0, :4] = 200
    grid = image_grid(images, columns=1)
    assert grid.shape == (64 + 2 * 2, 64 + 2 * 2, 3)
    # The edge in the middle is smoothed, so we look away from it.
    assert (grid[2:16, 2:-2] == 200).all() and (grid[52:66, 2:-2] == 0).all()
    assert len(np.unique(grid[24:44, 2:-2])) > 2


def test_png_holds_the_pixels(tmp_path):
    image = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    write_png(tmp_path / "new" / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), image)


def test_names_are_drawn_to_the_left_of_their_images():
    images = np.random.default_rng(0).integers(255, size=(3, 72, 72, 3), dtype=np.uint8)
    plain, named = image_grid(images, 2), image_grid(images, 2, ["7", "207 golden retriever"])
    margin = named.shape[1] - plain.shape[1]
    # Letters may touch the white line before the first image, so it is not compared.
    np.testing.assert_array_equal(named[:, margin + 3 :], plain[:, 3:])
    # The names are right-aligned, at the middle of their lines of images.
    rows, columns = np.nonzero((named[:, :margin] < 128).all(axis=-1))
    short, long = rows < plain.shape[0] // 2, rows >= plain.shape[0] // 2
    assert np.ptp(columns[short]) < 12 < 90 < np.ptp(columns[long])
    assert columns.max() - columns[short].max() < 6
    assert abs(rows[short].mean() - (3 + 36)) < 4 and abs(rows[long].mean() - (3 + 75 + 36)) < 4


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_shows_its_frames_and_the_last_one_longer(kind, tmp_path):
    frames = [np.full((8, 12, 3), level, np.uint8) for level in (0, 100, 200)]
    write_animation(tmp_path / "new" / f"a.{kind}", frames)
    with Image.open(tmp_path / "new" / f"a.{kind}") as file:
        assert (file.format, file.n_frames, file.info["loop"]) == (kind.upper(), 3, 0)
        durations = []
        for i, frame in enumerate(frames):
            file.seek(i)
            np.testing.assert_array_equal(np.asarray(file.convert("RGB")), frame)
            durations.append(file.info["duration"])
    assert durations == [80, 80, 3000]
