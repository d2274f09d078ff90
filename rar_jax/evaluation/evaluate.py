"""Evaluations with a report: samples against a reference, and a tokenizer by its reconstructions."""

import numpy as np
from etils import epath

from rar_jax.data.token_batches import evenly_spaced
from rar_jax.data.tokenizers import Tokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.features import Extractor, check_scored_labels
from rar_jax.evaluation.image_sets import ImageSet, take
from rar_jax.evaluation.neighbours import nearest
from rar_jax.evaluation.reconstruction import reconstruct
from rar_jax.evaluation.references import write_statistics
from rar_jax.evaluation.report import COLUMNS, Grid, Report, begin_report, write_report
from rar_jax.evaluation.scoring import (
    RECONSTRUCTION_NAMES,
    Reference,
    Summary,
    frechet_scores,
    sample_warnings,
    score,
    split_warnings,
    summarise,
)
from rar_jax.images.files import interleave_rows

# Number of samples in a report, number of those that are shown with their neighbours, and number of neighbours of each.
_SHOWN = 24
_WITH_NEIGHBOURS = 8
_SHOWN_NEIGHBOURS = 5


def evaluate_samples(
    samples: ImageSet,
    reference: Reference,
    extractor: Extractor,
    out: epath.PathLike,
    *,
    image_size: int | None = None,
    statistics: epath.PathLike | None = None,
) -> Report:
    """Scores samples against a reference, prints the report and writes it.

    Args:
      samples: the images to score.
      reference: the statistics or images to compare them with.
      extractor: extracts the features that are compared.
      out: folder of report.json and report.png.
      image_size: side in pixels that the images of folders were cut to, or None; it becomes part of the report.
      statistics: .npz file to which the statistics of the samples are also written.

    Raises:
      UserError: samples and reference cannot be compared, an image cannot be used, or `out` has another report.
    """
    _check_count(samples)
    reference.check(extractor, samples.size)
    check_scored_labels(extractor, samples.labels)
    inputs = {"samples": samples.name, "image_size": image_size} | _extractor_inputs(extractor)
    inputs["reference"] = reference.name
    begin_report(out, inputs)
    # First, because an unusable image of the reference should not be found after all samples.
    reference.prepare(extractor)
    keep = len(samples) if reference.images is not None else 0
    summary = summarise(samples, extractor, "the samples", keep, _SHOWN, logits=True)
    scores, warnings = score(summary, reference, extractor, samples.labels)
    facts = {
        "samples": _samples_facts(samples),
        "reference": _reference_facts(reference),
        "features": _features_facts(extractor),
    }
    title = f"{len(samples):,} samples of {epath.Path(samples.name).name}"
    report = Report(title, inputs, facts, scores, _samples_warnings(samples, reference, extractor) + warnings)
    grids = [Grid("Samples", summary.shown)]
    if reference.pool is not None:
        grids.append(draw_neighbours(summary, reference))
    write_report(out, report, grids)
    if statistics is not None:
        write_statistics(statistics, summary.gaussians)
    return report


def save_statistics(images: ImageSet, extractor: Extractor, path: epath.PathLike) -> None:
    """Writes the statistics of images to an .npz file, with the names that ADM's reference batches use.

    Raises:
      UserError: an image cannot be used, there are fewer than two, or the features are not for images of this size.
    """
    _check_count(images)
    extractor.num_features(images.size)
    write_statistics(path, summarise(images, extractor, "the samples").gaussians)


def evaluate_tokenizer(
    images: ImageSet,
    tokenizer: Tokenizer,
    extractor: Extractor,
    out: epath.PathLike,
    *,
    num: int | None = None,
    reference_kind: str | None = None,
) -> Report:
    """Scores a tokenizer by the images that it reconstructs, prints the report and writes it.

    Args:
      images: the images to reconstruct, squares of the tokenizer's size.
      tokenizer: the tokenizer to score.
      extractor: extracts the features that are compared.
      out: folder of report.json and report.png.
      num: number of images to use, the first ones; by default all.
      reference_kind: one of `scoring.REFERENCE_KINDS`, which names the images in the report.

    Raises:
      UserError: the images are too few, their size or their classes do not suit the features, one cannot be used, or
        `out` has another report.
    """
    count = min(num or len(images), len(images))
    if count < 2:
        raise UserError("a single image has no covariance: give at least 2")
    extractor.num_features(images.size)
    check_scored_labels(extractor, images.labels)
    inputs = {"images": images.name, "image_size": images.size[0], "num": count, "tokenizer": tokenizer.fingerprint}
    inputs |= _extractor_inputs(extractor)
    begin_report(out, inputs)
    originals, reconstructions, scores = reconstruct(images, tokenizer, extractor, count, _SHOWN)
    frechets, warnings = frechet_scores(
        reconstructions.gaussians, originals.gaussians, RECONSTRUCTION_NAMES[extractor.name]
    )
    samples = {
        "path": images.name,
        "images": count,
        "size": _pixels(images),
        "treatment": images.treatment,
        "reconstructed by": tokenizer.fingerprint,
    }
    kind = f"{reference_kind or 'unnamed'} images, the same ones before reconstruction"
    facts = {"samples": samples, "reference": {"kind": kind}, "features": _features_facts(extractor)}
    title = f"{count:,} reconstructions of {epath.Path(images.name).name}"
    report = Report(title, inputs, facts, frechets | scores, sample_warnings(count, None) + warnings)
    shown = interleave_rows(originals.shown, reconstructions.shown, COLUMNS)
    write_report(out, report, [Grid("Images, and below each its reconstruction", shown)])
    return report


def draw_neighbours(samples: Summary, reference: Reference) -> Grid:
    """Draws some samples, each with the images of the reference whose features are nearest to its own."""
    chosen = evenly_spaced(_WITH_NEIGHBOURS, len(samples.shown))
    count = min(_SHOWN_NEIGHBOURS, len(reference.pool))
    found = reference.places[nearest(samples.shown_pool[chosen], reference.pool, count)]
    images = take(reference.images, found.ravel()).reshape(*found.shape, *reference.images.size, 3)
    sides = [max(sizes) for sizes in zip(samples.shown.shape[1:3], images.shape[2:4], strict=True)]
    # Each line of the page shows two samples with their neighbours, and a gap between them.
    rows = np.full((len(chosen) + len(chosen) % 2, 2 + count, *sides, 3), 255, np.uint8)
    rows[: len(chosen), 0, : samples.shown.shape[1], : samples.shown.shape[2]] = samples.shown[chosen]
    rows[: len(chosen), 1:-1, : images.shape[2], : images.shape[3]] = images
    lines = rows.reshape(-1, 2 * (2 + count), *rows.shape[2:])[:, :-1]
    title = (
        f"Samples, and to the right of each the {count} nearest images of the reference "
        f"({_compared(reference)}; {reference.kind})"
    )
    return Grid(title, lines.reshape(-1, *lines.shape[2:]), lines.shape[1])


def _check_count(images: ImageSet) -> None:
    if len(images) < 2:
        raise UserError(f"{images.name} has a single image, which has no covariance: give at least 2")


def _samples_warnings(samples: ImageSet, reference: Reference, extractor: Extractor) -> list[str]:
    warnings = sample_warnings(len(samples), samples.labels)
    if samples.labels is not None and extractor.name == "inception":
        warnings += split_warnings(samples.labels)
    if reference.images is not None and reference.images.size != samples.size:
        warnings.append(
            f"the samples are {_pixels(samples)}, but the reference's images are {_pixels(reference.images)}"
        )
    return warnings


def _pixels(images: ImageSet) -> str:
    return f"{images.size[1]} x {images.size[0]} pixels"


def _samples_facts(images: ImageSet) -> dict[str, str | int]:
    classes = "not known, so their balance was not checked"
    if images.labels is not None:
        counts = np.unique(images.labels, return_counts=True)[1]
        per_class = f"{counts.min():,}" + (f" to {counts.max():,}" if np.ptp(counts) else "")
        classes = f"{len(counts):,}, {per_class} each"
    return {
        "path": images.name,
        "images": len(images),
        "size": _pixels(images),
        "classes": classes,
        "treatment": images.treatment,
    }


def _reference_facts(reference: Reference) -> dict[str, str | int]:
    facts = {"path": reference.name, "kind": reference.kind, "statistics": reference.statistics}
    if reference.images is not None:
        facts |= {
            "size": _pixels(reference.images),
            "treatment": reference.images.treatment,
            "precision and recall": f"against {_compared(reference)}",
        }
    return facts


def _compared(reference: Reference) -> str:
    """Names the images whose features precision, recall and neighbours are computed from."""
    count, total = len(reference.pool), len(reference.images)
    return f"its {count:,} images" if count == total else f"{count:,} of its {total:,} images, spread over all"


def _features_facts(extractor: Extractor) -> dict[str, str]:
    return {"name": extractor.name, "weights": extractor.fingerprint, "resize": extractor.resize}


def _extractor_inputs(extractor: Extractor) -> dict[str, str]:
    return {"features": extractor.name, "inception": extractor.fingerprint}
