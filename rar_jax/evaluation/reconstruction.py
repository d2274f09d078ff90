"""Scores how well a tokenizer reconstructs images: rFID, PSNR, SSIM, and the use of its codebook."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rar_jax.data.tokenizers import Tokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.features import Extractor, GlyphExtractor, extract_all
from rar_jax.evaluation.image_sets import ImageSet
from rar_jax.evaluation.scoring import Accumulator, Summary
from rar_jax.progress import Progress

# The window of Wang et al. (2004), and their constants for values from 0 to 255.
WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
# The smallest mean squared error, for values in [0, 1]. It limits PSNR to 100 dB.
_LEAST_ERROR = 1e-10


def psnr(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Computes the peak signal-to-noise ratio of pairs of images: two uint8 [B, H, W, 3] -> float64 [B], in dB."""
    errors = [np.mean((a / 255.0 - b / 255.0) ** 2) for a, b in zip(images, others, strict=True)]
    return -10 * np.log10(np.maximum(errors, _LEAST_ERROR))


def ssim(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Computes the structural similarity (Wang et al., 2004) of pairs of images: two uint8 [B, H, W, 3] -> float32 [B].

    The window is Gaussian, of 11 x 11 pixels with a standard deviation of 1.5. The result is the mean over all places
    where the window fits, and over the three channels.

    Raises:
      UserError: the images are smaller than the window.
    """
    if min(images.shape[1:3]) < WINDOW:
        raise UserError(
            f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, not {images.shape[2]} x {images.shape[1]}"
        )
    return jax.device_get(_ssim(images, others))


def _window_matrix(size: int) -> np.ndarray:
    """Returns the weights [size - 10, size] of the mean in the window, at each place where the window fits."""
    weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    matrix = np.zeros((size - WINDOW + 1, size), np.float32)
    for place in range(len(matrix)):
        matrix[place, place : place + WINDOW] = weights / weights.sum()
    return matrix


@jax.jit
def _ssim(images: jax.Array, others: jax.Array) -> jax.Array:
    rows, columns = (_window_matrix(size) for size in images.shape[1:3])
    mean = functools.partial(
        jnp.einsum, "Hh,Ww,bhwc->bHWc", rows, columns, precision=jax.lax.Precision.HIGHEST, optimize=True
    )
    # Centred about the middle value, so that squares keep more digits.
    a, b = images.astype(jnp.float32) - 128, others.astype(jnp.float32) - 128
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + 128, mean_b + 128
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return (luminance * (2 * cov + _C2) / (var_a + var_b + _C2)).mean(axis=(1, 2, 3))


def codebook_scores(counts: np.ndarray) -> dict[str, float]:
    """Scores the use of a codebook.

    Args:
      counts: int [V], how often each code was used.

    Returns:
      codebook_use, the share of codes that were used, and codebook_perplexity, exp(entropy).
    """
    frequencies = counts[counts > 0] / counts.sum()
    return {
        "codebook_use": float((counts > 0).mean()),
        "codebook_perplexity": float(np.exp(-(frequencies * np.log(frequencies)).sum())),
    }


class PairScores:
    """Accumulates the scores of images, their codes and their reconstructions."""

    def __init__(self, codebook_size: int):
        """Starts without images."""
        self._codes = np.zeros(codebook_size, np.int64)
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, images: np.ndarray, codes: np.ndarray, reconstructions: np.ndarray) -> None:
        """Adds images uint8 [B, H, W, 3], their codes int [B, ...] and their reconstructions uint8 [B, H, W, 3].

        Images that are smaller than the window of SSIM have no SSIM.
        """
        scores = {"psnr": psnr(images, reconstructions)}
        if min(images.shape[1:3]) >= WINDOW:
            scores["ssim"] = ssim(images, reconstructions)
        for name, values in scores.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(values.sum())
        self._codes += np.bincount(codes.ravel(), minlength=len(self._codes))
        self._count += len(images)

    def means(self) -> dict[str, float]:
        """Returns psnr and ssim (see `add`), means over images, and codebook_use and codebook_perplexity."""
        return {name: total / self._count for name, total in self._sums.items()} | codebook_scores(self._codes)


def reconstruct(
    images: ImageSet, tokenizer: Tokenizer, extractor: Extractor, count: int, show: int
) -> tuple[Summary, Summary, dict[str, float]]:
    """Encodes and decodes images, and compares the results with the originals.

    Args:
      images: the images, of the tokenizer's size.
      tokenizer: the tokenizer to score.
      extractor: computes the features.
      count: number of images to use, from the beginning of the set.
      show: number of images to keep in each summary.

    Returns:
      The summary of the images, the summary of their reconstructions, and the scores psnr and ssim (means over images),
      codebook_use, codebook_perplexity and, with the features of the glyphs and known classes, glyph_accuracy of the
      reconstructions and glyph_accuracy_originals.

    Raises:
      UserError: an image cannot be used, or there are fewer than two.
    """
    both = [Accumulator(count, show=show, logits=extractor.name == GlyphExtractor.name) for _ in range(2)]
    scores = PairScores(tokenizer.codebook_size)
    progress, done = Progress("reconstruct", count, unit="image"), 0
    for batch in images.batches(max(tokenizer.batch_size, extractor.batch_size)):
        batch = batch[: count - done]
        tokens = tokenizer.encode(batch)
        reconstructions = tokenizer.decode(tokens)
        scores.add(batch, tokens, reconstructions)
        for accumulator, each in zip(both, (batch, reconstructions), strict=True):
            for part, features in extract_all(extractor, [each]):
                accumulator.add(part, features)
        done += len(batch)
        progress.update(len(batch))
        if done == count:
            break
    progress.close()
    originals, reconstructions = (each.summary() for each in both)
    found = scores.means()
    if originals.logits is not None and images.labels is not None:
        for name, summary in (("glyph_accuracy", reconstructions), ("glyph_accuracy_originals", originals)):
            found[name] = extractor.score_classes(summary.logits, images.labels[:count])
    return originals, reconstructions, found
