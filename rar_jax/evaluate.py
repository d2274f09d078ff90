"""Scores images: python -m rar_jax.evaluate --samples=S.npz --reference=REFERENCE.npz --inception=WEIGHTS ..."""

import numpy as np
from absl import flags
from etils import epath

from rar_jax import cli
from rar_jax.evaluation.features import Extractor, open_extractor
from rar_jax.evaluation.image_sets import ImageSet, open_images, take
from rar_jax.evaluation.neighbours import nearest
from rar_jax.evaluation.references import write_statistics
from rar_jax.evaluation.report import Picture, Report, write_report
from rar_jax.evaluation.scoring import REFERENCE_KINDS, Reference, Summary, score, summarise, warnings_of
from rar_jax.run_folder import check_folder

_SAMPLES = flags.DEFINE_string("samples", None, "What is scored: an .npz (arr_0) or a folder of images.")
_REFERENCE = flags.DEFINE_string("reference", None, "Against what: an .npz with statistics or arr_0, or a folder.")
_KIND = flags.DEFINE_enum("reference_kind", None, REFERENCE_KINDS, "What the reference's images are, for the report.")
_FEATURES = flags.DEFINE_enum("features", "inception", ("inception", "pixels"), "pixels is of small images only.")
_INCEPTION = flags.DEFINE_string("inception", None, "Weights of the FID Inception network.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Cut the images of folders to this side (ADM centre crop).", 1)
_OUT = flags.DEFINE_string("out", None, "Folder of the report; by default evaluation/ and the name of what is scored.")
_SAVE = flags.DEFINE_string(
    "save_statistics", None, "Also write the samples' statistics to this .npz, as ADM has them."
)

_SHOWN = 24
_WITH_NEIGHBOURS = 8
_SHOWN_NEIGHBOURS = 5


def _out(scored: str) -> epath.Path:
    return epath.Path(_OUT.value or epath.Path("evaluation") / epath.Path(scored).absolute().stem)


def _pixels(images: ImageSet) -> str:
    return f"{images.size[1]} x {images.size[0]} pixels"


def _samples_facts(images: ImageSet) -> dict[str, str | int]:
    counts = None if images.labels is None else np.unique(images.labels, return_counts=True)[1]
    per_class = "" if counts is None else f"{counts.min():,}" + (f" to {counts.max():,}" if np.ptp(counts) else "")
    return {
        "path": images.name,
        "images": len(images),
        "size": _pixels(images),
        "classes": "not known, their balance not checked" if counts is None else f"{len(counts):,}, {per_class} each",
        "treatment": images.treatment,
    }


def _reference_facts(reference: Reference) -> dict[str, str | int]:
    facts = {"path": reference.name, "kind": reference.kind, "statistics": reference.statistics}
    if reference.images is not None:
        facts |= {
            "size": _pixels(reference.images),
            "treatment": reference.images.treatment,
            "precision and recall": f"against its first {len(reference.pool):,} images",
        }
    return facts


def _features_facts(extractor: Extractor) -> dict[str, str]:
    return {"name": extractor.name, "weights": extractor.fingerprint, "resize": extractor.resize}


def _neighbours(samples: Summary, reference: Reference) -> Picture:
    """A row a sample: the sample, and the nearest images of the reference."""
    chosen = np.linspace(0, len(samples.shown) - 1, min(_WITH_NEIGHBOURS, len(samples.shown))).round().astype(int)
    count = min(_SHOWN_NEIGHBOURS, len(reference.pool))
    found = nearest(samples.shown_pool[chosen], reference.pool, count)
    places = np.unique(found)
    images = take(reference.images, places)[np.searchsorted(places, found)]
    sides = [max(sizes) for sizes in zip(samples.shown.shape[1:3], images.shape[2:4], strict=True)]
    # Two samples a line of the page, and between them a gap.
    rows = np.full((len(chosen) + len(chosen) % 2, 2 + count, *sides, 3), 255, np.uint8)
    rows[: len(chosen), 0, : samples.shown.shape[1], : samples.shown.shape[2]] = samples.shown[chosen]
    rows[: len(chosen), 1:-1, : images.shape[2], : images.shape[3]] = images
    lines = rows.reshape(-1, 2 * (2 + count), *rows.shape[2:])[:, :-1]
    title = f"Samples, and right of each the {count} nearest of the reference's first {len(reference.pool):,} images"
    return Picture(f"{title} ({reference.kind})", lines.reshape(-1, *lines.shape[2:]), lines.shape[1])


def _score() -> None:
    images = open_images(_SAMPLES.value, _IMAGE_SIZE.value)
    if len(images) < 2:
        raise ValueError(f"{images.name} has a single image, which has no covariance: give at least 2")
    reference = Reference(_REFERENCE.value, _KIND.value, _IMAGE_SIZE.value) if _REFERENCE.value else None
    extractor = open_extractor(_FEATURES.value, _INCEPTION.value)
    if reference:
        reference.check(extractor, images.size)
    warnings = warnings_of(images)
    if reference and reference.images is not None and reference.images.size != images.size:
        warnings.append(f"the samples are {_pixels(images)}, the reference's images {_pixels(reference.images)}")
    samples = summarise(images, extractor, "the samples", show=_SHOWN)
    if _SAVE.value:
        write_statistics(_SAVE.value, samples.gaussians)
        print(f"{_SAVE.value}: statistics of {len(images):,} images")
    if not reference:
        return
    reference.prepare(extractor)
    scores, more = score(samples, reference, extractor)
    facts = {
        "samples": _samples_facts(images),
        "reference": _reference_facts(reference),
        "features": _features_facts(extractor),
    }
    pictures = [Picture("Samples", samples.shown)]
    if reference.pool is not None:
        pictures.append(_neighbours(samples, reference))
    title = f"{len(images):,} samples of {epath.Path(images.name).name}"
    write_report(_out(images.name), Report(title, facts, scores, warnings + more), pictures)


def main(argv):
    del argv
    with cli.user_errors():
        if not _SAMPLES.value:
            raise ValueError("name what to score with --samples=S.npz or a folder")
        if not (_REFERENCE.value or _SAVE.value):
            raise ValueError("name what to score against with --reference, or where to save statistics")
        check_folder("out", _out(_SAMPLES.value))
        if _SAVE.value:
            check_folder("save_statistics", epath.Path(_SAVE.value).parent)
            if not _SAVE.value.endswith(".npz"):
                raise ValueError(f"--save_statistics={_SAVE.value} must be an .npz file")
        _score()


if __name__ == "__main__":
    cli.run(main)
