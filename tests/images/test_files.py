import numpy as np
from PIL import Image

from rar_jax.images.files import image_grid, write_npz, write_png


def test_grid_places_images_row_by_row():
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
    # Away from the edge in the middle, which is smoothed.
    assert (grid[2:16, 2:-2] == 200).all() and (grid[52:66, 2:-2] == 0).all()
    assert len(np.unique(grid[24:44, 2:-2])) > 2


def test_png_and_npz_hold_the_pixels(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(3, 8, 8, 3), dtype=np.uint8)
    write_png(tmp_path / "new" / "a.png", images[0])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), images[0])
    write_npz(tmp_path / "a.npz", images)
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == ["arr_0"]
        np.testing.assert_array_equal(file["arr_0"], images)
