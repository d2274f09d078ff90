"""Compares samples with their nearest training images, which shows whether a model copies them."""

import numpy as np
from etils import epath
from PIL import Image

from rar_jax.data.tokenizers import Tokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.image_sets import ImageSet, chosen, take
from rar_jax.evaluation.neighbours import Neighbours, nearest_images
from rar_jax.evaluation.report import COLUMNS, Grid, Report, begin_report, write_report
from rar_jax.evaluation.scoring import spread_places
from rar_jax.images.files import interleave_rows
from rar_jax.progress import Progress

# Images are compared by thumbnails of at most this side, in pixels.
_SIDE = 32
# Largest numbers of samples and of held-out images that are compared.
_QUERIES = 1000
# Training images that are read and compared at once.
_BLOCK = 256
# Samples that are shown: those that are nearest to a training image.
_SHOWN = 2 * COLUMNS
# A sample is suspicious if it is nearer to a training image than all but this share of the held-out images are.
_SHARE = 0.01
# With more suspicious samples the report warns.
_WARNING = 0.05


def find_nearest(queries: np.ndarray, training: ImageSet) -> Neighbours:
    """Finds the training image nearest to each query, by thumbnails in grey levels (0 to 255).

    Args:
      queries: uint8 [N, H, W, 3].
      training: images of the same size.

    Raises:
      UserError: a training image cannot be used.
    """
    side = min(_SIDE, queries.shape[1])
    flat = _thumbnails(queries, side)
    places, distances = np.zeros(len(flat), int), np.full(len(flat), np.inf)
    progress, start = Progress("compare with training images", len(training), unit="image"), 0
    for batch in training.batches(_BLOCK):
        block = _thumbnails(batch, side)
        found = nearest_images(flat, block)
        nearer = found.distances < distances
        places[nearer], distances[nearer] = start + found.places[nearer], found.distances[nearer]
        start += len(batch)
        progress.update(len(batch))
    progress.close()
    return Neighbours(places, distances)


def _thumbnails(images: np.ndarray, side: int) -> np.ndarray:
    """Returns thumbnails as rows of numbers: float32 [N, side * side * 3]."""
    small = [Image.fromarray(image).resize((side, side), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image, np.float32).ravel() for image in small])


def compare_with_training(
    samples: ImageSet, training: ImageSet, heldout: ImageSet, tokenizer: Tokenizer, out: epath.PathLike
) -> Report:
    """Compares samples with the training images, prints the report and writes it.

    Held-out images, encoded and decoded by the model's tokenizer, are compared in the same way: a model that does not
    copy makes samples that are as far from the training images as held-out images are. With at least 100 of them, the
    report has the share of samples that are nearer to a training image than 99% of them.

    Args:
      samples, training, heldout: sets of images of one size.
      tokenizer: the model's tokenizer.
      out: folder of report.json and report.png.

    Raises:
      UserError: the sizes differ, an image cannot be used, or `out` has another report.
    """
    sizes = {images.name: "{1} x {0}".format(*images.size) for images in (samples, training, heldout)}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{size} in {name}" for name, size in sizes.items())
        raise UserError(f"the images have different sizes, {found}: set --image_size to that of the samples")
    inputs = {"samples": samples.name, "training": training.name, "heldout": heldout.name, "size": sizes[samples.name]}
    inputs["tokenizer"] = tokenizer.fingerprint
    begin_report(out, inputs)
    some, real = (_some(images) for images in (samples, heldout))
    both = np.concatenate([some, tokenizer.decode(tokenizer.encode(real))])
    found = find_nearest(both, training)
    of_samples, of_heldout = np.split(found.distances, [len(some)])
    scores = {"nearest_samples": float(np.median(of_samples)), "nearest_heldout": float(np.median(of_heldout))}
    warnings = []
    # The quantile of fewer distances lies near the smallest one, which is random.
    if len(real) < 1 / _SHARE:
        warnings.append(
            f"{len(real)} held-out images are too few to count copies: compare with {1 / _SHARE:.0f} or more"
        )
    else:
        scores["near_samples"] = near = float(np.mean(of_samples < np.quantile(of_heldout, _SHARE)))
        if near > _WARNING:
            warnings.append(
                f"{near:.0%} of the samples are nearer to a training image than {1 - _SHARE:.0%} of the held-out "
                "images are: the model copies; train it for fewer epochs, or a smaller one"
            )
    facts = {
        "samples": {"path": samples.name, "images": len(some)},
        "held-out": {"path": heldout.name, "images": len(real), "reconstructed by": tokenizer.fingerprint},
        "training": {"path": training.name, "images": len(training)},
    }
    report = Report("Nearest training images", inputs, facts, scores, warnings)
    order = np.argsort(of_samples, kind="stable")[:_SHOWN]
    shown = interleave_rows(some[order], take(training, found.places[order]), COLUMNS)
    write_report(out, report, [Grid("The samples nearest to a training image, and below each that image", shown)])
    return report


def _some(images: ImageSet) -> np.ndarray:
    """Returns up to `_QUERIES` images, spread over the set."""
    return np.concatenate(list(chosen(images, spread_places(len(images), _QUERIES), _QUERIES)))
