import types

import numpy as np
import pytest

from rar_jax.data.class_names import find_classes
from rar_jax.errors import UserError
from rar_jax.generation.pictures import SampleGrid, choose_labels, sample_pictures
from rar_jax.images.files import image_grid
from rar_jax.sampling.options import Options


def generator(num_classes):
    """A model of some classes, without weights."""
    model = types.SimpleNamespace(config=types.SimpleNamespace(num_classes=num_classes))
    return types.SimpleNamespace(
        sampler=types.SimpleNamespace(model=model), class_names=None,
        labels=lambda classes: np.array(find_classes(classes, None), np.int32),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "num", "labels"),
    [
        ([3, 1], None, [3, 1] * 8),
        ([3, 1], 5, [3, 1, 3, 1, 3]),
        ([3, 1], 1, [3]),
        # All twelve classes with a number, and otherwise ten that are evenly spaced.
        ([], 14, [*range(12), 0, 1]),
        ([], 4, [0, 3, 6, 9]),
        ([], None, [0, 1, 2, 4, 5, 6, 7, 9, 10, 11] * 8),
    ],
)
def test_labels(classes, num, labels):
    assert choose_labels(generator(12), classes, num).tolist() == labels


def test_a_grid_has_a_row_of_images_for_each_class():
    labels = np.array([4, 2, 4, 4, 2, 9])
    grid = SampleGrid(labels, None, size=(2, 2))
    assert grid.numbers.tolist() == [0, 2, 1, 4]
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.full((8, 8, 3), 10, np.uint8)
    np.testing.assert_array_equal(grid.draw(images), image_grid(images, 2, ["4", "2"]))
    # A class with fewer images than others leaves white cells.
    grid = SampleGrid(labels, None, size=(3, 2))
    assert grid.numbers.tolist() == [0, 2, 1, 4, 5]
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    images = np.concatenate([images, images[:1]])
    np.testing.assert_array_equal(grid.draw(images), image_grid(np.concatenate([images, white]), 2, ["4", "2", "9"]))


def test_images_that_would_be_in_no_file_are_refused(tmp_path):
    message = r"the grid would show 16 of the 17 images: add --npz or --png to keep all, or sample fewer with --num"
    with pytest.raises(UserError, match=message):
        sample_pictures(generator(12), np.zeros(17, int), Options(), tmp_path)
