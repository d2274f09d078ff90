import numpy as np
import pytest
import scipy.signal

from rar_jax.checkpoints.weights import load_weights
from rar_jax.data.tokenizers import VQGANTokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.features import PixelExtractor
from rar_jax.evaluation.image_sets import open_images
from rar_jax.evaluation.reconstruction import codebook_scores, psnr, reconstruct, ssim


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    images = np.repeat(np.repeat(rng.integers(0, 256, (3, 6, 5, 3)), 4, axis=1), 4, axis=2).astype(np.uint8)
    noise = rng.normal(0, 20, images.shape)
    return images, np.clip(images + noise, 0, 255).astype(np.uint8)


def test_ssim_by_its_definition(pairs):
    images, others = pairs
    line = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    window = np.outer(line, line) / line.sum() ** 2

    def mean(x):
        return scipy.signal.convolve2d(x, window, mode="valid")

    expected = []
    for a, b in zip(images.astype(float), others.astype(float), strict=True):
        maps = []
        for x, y in zip(np.moveaxis(a, 2, 0), np.moveaxis(b, 2, 0), strict=True):
            mx, my = mean(x), mean(y)
            cov, vx, vy = mean(x * y) - mx * my, mean(x * x) - mx**2, mean(y * y) - my**2
            maps.append((2 * mx * my + 2.55**2) * (2 * cov + 7.65**2) / (mx**2 + my**2 + 2.55**2) / (vx + vy + 7.65**2))
        expected.append(np.mean(maps))
    np.testing.assert_allclose(ssim(images, others), expected, rtol=1e-4)
    np.testing.assert_allclose(ssim(images, images), 1, rtol=1e-5)
    with pytest.raises(UserError, match="at least 11 x 11 pixels, not 20 x 10"):
        ssim(images[:, :10], others[:, :10])


def test_psnr():
    black, other = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8)
    other[0] = 51
    # The error is a fifth of the range everywhere, which gives 20 log10(5) dB.
    np.testing.assert_allclose(psnr(black, other), [20 * np.log10(5), 100])


def test_codebook_scores():
    assert codebook_scores(np.array([5, 5, 0, 0])) == {"codebook_use": 0.5, "codebook_perplexity": pytest.approx(2)}
    assert codebook_scores(np.array([9, 0]))["codebook_perplexity"] == 1


def test_reconstructions_are_scored(scenes, vqgan_file):
    weights = load_weights(vqgan_file, "vqgan")
    tokenizer = VQGANTokenizer(weights.model, weights.params, 16)
    images = open_images(scenes, 16)
    originals, again, scores = reconstruct(images, tokenizer, PixelExtractor(), count=20, show=3)
    first = next(images.batches(20))
    tokens = tokenizer.encode(first)
    decoded = tokenizer.decode(tokens)
    np.testing.assert_array_equal(originals.shown, first[[0, 10, 19]])
    np.testing.assert_array_equal(again.shown, decoded[[0, 10, 19]])
    np.testing.assert_allclose(again.gaussians["pool"].mu, PixelExtractor().extract(decoded).pool.mean(0), rtol=1e-5)
    assert scores["psnr"] == pytest.approx(psnr(first, decoded).mean())
    assert scores["ssim"] == pytest.approx(ssim(first, decoded).mean(), rel=1e-5)
    assert scores["codebook_use"] == len(np.unique(tokens)) / 24
