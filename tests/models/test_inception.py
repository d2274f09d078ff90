import jax
import numpy as np
import pytest
from conftest import DATA

from rar_jax.checkpoints.pytorch import inception_from_pytorch
from rar_jax.models.inception import _avg_pool, _max_pool, resize_bilinear


@pytest.mark.parametrize("i", [0, 1])
def test_features_are_the_published_ones(inception_tensors, i):
    golden = np.load(DATA / "inception.npz")
    model, params = inception_from_pytorch(inception_tensors)
    features = jax.jit(model.apply)({"params": params}, golden[f"images_{i}"])
    for name, array in (
        ("2048", features.pool),
        ("spatial_mixed_6_conv_first7", features.spatial),
        ("logits_unbiased", features.logits_unbiased),
    ):
        expected = golden[f"features_{i}/{name}"]
        assert array.shape == expected.shape and array.dtype == np.float32
        # Float32 sums in another order differ by 3e-6 of the largest value.
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize(("height", "width", "side"), [(5, 7, 12), (9, 16, 4), (6, 6, 6), (1, 2, 3), (64, 96, 299)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_is_tensorflow_1s(height, width, side, dtype):
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(dtype)

    def along(line, place):
        """Interpolates at a place between two pixels. Beyond the last pixel, the last one is repeated."""
        left = int(place)
        right = min(left + 1, len(line) - 1)
        return line[left] + (place - left) * (line[right].astype(float) - line[left])

    expected = np.empty((2, side, side, 3))
    for b in range(2):
        for row in range(side):
            line = along(images[b], row * height / side)
            for column in range(side):
                expected[b, row, column] = along(line, column * width / side)
    resized = resize_bilinear(images, side)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-4)
    if side == height == width:
        np.testing.assert_array_equal(resized, images)


@pytest.mark.parametrize(("pool", "reduce"), [(_avg_pool, np.mean), (lambda x: _max_pool(x, 1, "SAME"), np.max)])
def test_pooling_does_not_count_the_padding(pool, reduce):
    # All values are negative, so that a zero from the padding would be the largest.
    x = np.random.default_rng(0).uniform(-2, -1, (2, 5, 4, 3)).astype(np.float32)
    expected = np.empty_like(x)
    for row in range(5):
        for column in range(4):
            window = x[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            expected[:, row, column] = reduce(window, axis=(1, 2))
    np.testing.assert_allclose(pool(x), expected, rtol=1e-6)
