"""Scores images: python -m rar_jax evaluate --samples=S.npz --reference=REFERENCE.npz --inception=WEIGHTS ...

--reconstruction scores a tokenizer instead, --tune looks for the best sampling options of a model, and --curves draws
losses and scores of several runs.
"""

import dataclasses
import os
from collections.abc import Callable

import numpy as np
from absl import flags
from etils import epath

from rar_jax.checkpoints.weights import fingerprint, split_step
from rar_jax.commands import cli
from rar_jax.commands.compilation_cache import keep_compiled_programs
from rar_jax.data.tokenizers import decoded, open_tokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.features import Extractor, open_extractor
from rar_jax.evaluation.image_sets import ImageSet, open_images, take
from rar_jax.evaluation.neighbours import nearest
from rar_jax.evaluation.reconstruction import WINDOW, reconstruct
from rar_jax.evaluation.references import write_statistics
from rar_jax.evaluation.report import COLUMNS, Picture, Report, begin_report, score_label, write_report
from rar_jax.evaluation.sample_scores import ReferenceScorer
from rar_jax.evaluation.scoring import (
    PAPERS_IMAGES,
    RECONSTRUCTION_NAMES,
    REFERENCE_KINDS,
    Reference,
    Summary,
    frechet_scores,
    score,
    split_warnings,
    summarise,
    warnings_of,
)
from rar_jax.evaluation.tuning import Setting, check_numbers, grid, search
from rar_jax.generate import load
from rar_jax.generation.job import job_images
from rar_jax.images.files import interleave_rows
from rar_jax.images.plots import plot_heat_maps
from rar_jax.run_folder import check_folder, run_names
from rar_jax.sampling.options import Options
from rar_jax.sampling.sampler import MAX_SEED, sample_tokens
from rar_jax.training.curves import plot_runs
from rar_jax.training.metrics import read_metrics

_SAMPLES = flags.DEFINE_string("samples", None, "What is scored: an .npz (arr_0) or a folder of images.")
_REFERENCE = flags.DEFINE_string("reference", None, "Against what: an .npz with statistics or arr_0, or a folder.")
_KIND = flags.DEFINE_enum("reference_kind", None, REFERENCE_KINDS, "What the reference's images are, for the report.")
_FEATURES = flags.DEFINE_enum("features", "inception", ("inception", "pixels"), "pixels is of small images only.")
_INCEPTION = flags.DEFINE_string("inception", None, "Weights of the FID Inception network.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Cut the images of folders to this side (ADM centre crop).", 1)
_OUT = flags.DEFINE_string("out", None, "Folder of the report; by default evaluation/NAME beside what is scored.")
_SAVE = flags.DEFINE_string(
    "save_statistics", None, "Also write the samples' statistics to this .npz, as ADM has them."
)

_RECONSTRUCTION = flags.DEFINE_bool("reconstruction", False, "Score a tokenizer: rFID, PSNR, SSIM, codebook use.")
_IMAGES = flags.DEFINE_string("images", None, "What is reconstructed: a folder or an .npz.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "MaskGIT-VQGAN weights, or digits; of --tune by default the run's.")
_NUM = flags.DEFINE_integer("num", None, "Images to reconstruct, by default all; to sample of a setting, 5,000.", 2)
_TUNE = flags.DEFINE_bool("tune", False, "Look for the best guidance and temperature; started again, it goes on.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "What is tuned: a run's or converted folder, or a published file."
)
_SCALES = flags.DEFINE_list("guidance_scales", [], "To try; by default from half to 1.5 times the run's.")
_POWERS = flags.DEFINE_list("guidance_powers", [], "To try; by default from half to 1.5 times the run's.")
_TEMPERATURES = flags.DEFINE_list("temperatures", [], "To try; by default the run's.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples of every setting.", 0, MAX_SEED)
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images decoded at once.", lower_bound=1)
_CURVES = flags.DEFINE_list("curves", [], "Draw losses and scores of these runs' folders on one page.")

# Side of images that are reconstructed.
_DEFAULT_SIZE = 256
_DEFAULT_TUNING_IMAGES = 5000
_SHOWN = 24
_WITH_NEIGHBOURS = 8
_SHOWN_NEIGHBOURS = 5


def _out(scored: str, name: str = "") -> epath.Path:
    """The folder of what is written: by default evaluation/ beside what is scored, and in it one of its name."""
    if _OUT.value:
        return epath.Path(_OUT.value)
    path, _ = split_step(scored)
    if path.name in ("", ".."):
        path = epath.Path(os.path.abspath(path))
    return path.parent / "evaluation" / (name or (path.name if path.is_dir() else path.stem))


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
            "precision and recall": f"against {_compared(reference)}",
        }
    return facts


def _compared(reference: Reference) -> str:
    """What precision, recall and nearest images are of."""
    count, total = len(reference.pool), len(reference.images)
    return f"its {count:,} images" if count == total else f"{count:,} of its {total:,} images, spread over all"


def _features_facts(extractor: Extractor) -> dict[str, str]:
    return {"name": extractor.name, "weights": extractor.fingerprint, "resize": extractor.resize}


def _neighbours(samples: Summary, reference: Reference) -> Picture:
    """A row a sample: the sample, and the nearest images of the reference."""
    chosen = np.linspace(0, len(samples.shown) - 1, min(_WITH_NEIGHBOURS, len(samples.shown))).round().astype(int)
    count = min(_SHOWN_NEIGHBOURS, len(reference.pool))
    found = reference.places[nearest(samples.shown_pool[chosen], reference.pool, count)]
    images = take(reference.images, found.ravel()).reshape(*found.shape, *reference.images.size, 3)
    sides = [max(sizes) for sizes in zip(samples.shown.shape[1:3], images.shape[2:4], strict=True)]
    # Two samples a line of the page, and between them a gap.
    rows = np.full((len(chosen) + len(chosen) % 2, 2 + count, *sides, 3), 255, np.uint8)
    rows[: len(chosen), 0, : samples.shown.shape[1], : samples.shown.shape[2]] = samples.shown[chosen]
    rows[: len(chosen), 1:-1, : images.shape[2], : images.shape[3]] = images
    lines = rows.reshape(-1, 2 * (2 + count), *rows.shape[2:])[:, :-1]
    title = (
        f"Samples, and right of each the {count} nearest of the reference ({_compared(reference)}; {reference.kind})"
    )
    return Picture(title, lines.reshape(-1, *lines.shape[2:]), lines.shape[1])


def _score() -> None:
    images = open_images(job_images(_SAMPLES.value), _IMAGE_SIZE.value)
    if len(images) < 2:
        raise UserError(f"{images.name} has a single image, which has no covariance: give at least 2")
    reference = Reference(job_images(_REFERENCE.value), _KIND.value, _IMAGE_SIZE.value) if _REFERENCE.value else None
    extractor = open_extractor(_FEATURES.value, _INCEPTION.value)
    out = _out(_SAMPLES.value)
    inputs = {"samples": images.name, "image_size": _IMAGE_SIZE.value} | _extractor_inputs(extractor)
    if reference:
        reference.check(extractor, images.size)
        inputs["reference"] = reference.name
        begin_report(out, inputs)
    warnings = warnings_of(len(images), images.labels)
    if images.labels is not None and extractor.name == "inception":
        warnings += split_warnings(images.labels)
    if reference and reference.images is not None and reference.images.size != images.size:
        warnings.append(f"the samples are {_pixels(images)}, the reference's images {_pixels(reference.images)}")
    keep = len(images) if reference and reference.images is not None else 0
    samples = summarise(images, extractor, "the samples", keep, _SHOWN, logits=reference is not None)
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
    write_report(out, Report(title, inputs, facts, scores, warnings + more), pictures)


def _extractor_inputs(extractor: Extractor) -> dict[str, str]:
    return {"features": extractor.name, "inception": extractor.fingerprint}


def _reconstruction() -> None:
    size = _IMAGE_SIZE.value or _DEFAULT_SIZE
    if size < WINDOW:
        raise UserError(f"--image_size={size} must be at least {WINDOW}, the window of SSIM")
    images = open_images(job_images(_IMAGES.value), size)
    count = min(_NUM.value or len(images), len(images))
    if count < 2:
        raise UserError("a single image has no covariance: give at least 2")
    tokenizer = open_tokenizer(_TOKENIZER.value, size)
    extractor = open_extractor(_FEATURES.value, _INCEPTION.value)
    extractor.num_features(images.size)
    out = _out(_IMAGES.value)
    inputs = {"images": images.name, "image_size": size, "num": count, "tokenizer": tokenizer.fingerprint}
    inputs |= _extractor_inputs(extractor)
    begin_report(out, inputs)
    originals, again, scores = reconstruct(images, tokenizer, extractor, count, _SHOWN)
    frechets, more = frechet_scores(again.gaussians, originals.gaussians, RECONSTRUCTION_NAMES[extractor.name])
    facts = {
        "samples": {
            "path": images.name,
            "images": count,
            "size": _pixels(images),
            "treatment": images.treatment,
            "reconstructed by": tokenizer.fingerprint,
        },
        "reference": {"kind": f"{_KIND.value or 'unnamed'} images, the same ones before reconstruction"},
        "features": _features_facts(extractor),
    }
    title = f"{count:,} reconstructions of {epath.Path(images.name).name}"
    pictures = [
        Picture("Images, and below each its reconstruction", interleave_rows(originals.shown, again.shown, COLUMNS))
    ]
    report = Report(title, inputs, facts, frechets | scores, warnings_of(count, None) + more)
    write_report(out, report, pictures)


def _tune() -> None:
    # What is wrong with these is said before the weights are loaded.
    scales, powers, temperatures = map(_numbers, (_SCALES, _POWERS, _TEMPERATURES))
    reference = Reference(job_images(_REFERENCE.value), None)
    extractor = open_extractor(_FEATURES.value, _INCEPTION.value)
    generator = load(_CHECKPOINT.value, tokenizer=_TOKENIZER.value)
    options = generator.options()
    settings = grid(
        _tried(_SCALES, scales, options.guidance_scale, options.guidance != "none", options),
        _tried(_POWERS, powers, options.guidance_power, options.guidance == "pow_cosine", options),
        temperatures or [options.temperature],
    )
    scorer = ReferenceScorer(extractor, reference, generator.config.data.image_size)
    labels = np.arange(_NUM.value or _DEFAULT_TUNING_IMAGES) % generator.sampler.model.config.num_classes
    fixed = {name: value for name, value in dataclasses.asdict(options).items() if name not in Setting._fields}
    plan = {
        "model": f"{generator.config.name}-{fingerprint(generator.sampler.params)}",
        "step": generator.step,
        "tokenizer": generator.tokenizer.fingerprint,
        "images": len(labels),
        "seed": _SEED.value,
        **fixed,
        "reference": reference.name,
        "features": scorer.fingerprint,
    }

    def score_setting(setting: Setting, on_batch: Callable[[int], None]) -> dict[str, float]:
        # Does nothing from the second time on, nor where all is scored already.
        scorer.prepare()
        tokens = sample_tokens(
            generator.sampler, labels, dataclasses.replace(options, **setting._asdict()),
            seed=_SEED.value, batch_size=_BATCH.value, on_batch=on_batch,
        )  # fmt: skip
        return scorer.score(decoded(generator.tokenizer, tokens), labels)

    out = _out(_CHECKPOINT.value)
    found = search(out, plan, settings, len(labels), score_setting)
    name = next(iter(next(iter(found.values()))))
    values = {setting: scores[name] for setting, scores in found.items()}
    label = score_label(name)
    title = f"{label}: {len(labels):,} samples of {_CHECKPOINT.value}, step {generator.step}, seed {_SEED.value}"
    picture = out / "tuning.png"
    plot_heat_maps(picture, Setting._fields, values, title)
    best = min(values, key=values.get)
    print(f"{picture}: {label}; {len(values)} settings, {len(labels):,} images each")
    print(f"best ({values[best]:.4g}): {best.flags()}")
    if len(labels) < PAPERS_IMAGES:
        print(f"of {len(labels):,} images: compare it with others of this search only")


def _numbers(flag: flags.FlagHolder) -> list[float]:
    """The numbers of a flag, those of a setting; none where it is not given."""
    try:
        numbers = [float(number) for number in flag.value]
    except ValueError:
        raise UserError(f"--{flag.name}={','.join(flag.value)} must be numbers, such as 1,1.5") from None
    check_numbers(flag.name, numbers)
    return numbers


def _tried(flag: flags.FlagHolder, numbers: list[float], default: float, counts: bool, options: Options) -> list[float]:
    """The numbers to try: those given, or some about the run's; the run's alone where it does not count."""
    if counts:
        return numbers or [default * factor for factor in (0.5, 0.75, 1, 1.25, 1.5)]
    if numbers:
        raise UserError(
            f"--{flag.name}={','.join(flag.value)} changes nothing with the run's guidance={options.guidance}: "
            "leave it out"
        )
    return [default]


def _curves() -> None:
    runs = dict(zip(run_names(_CURVES.value), map(read_metrics, _CURVES.value), strict=True))
    picture = _out(_CURVES.value[0], "curves") / "curves.png"
    plot_runs(picture, runs)
    print("\n".join(runs))
    print(picture)


# What is done, by the flag that asks for it.
_MODES = {
    "samples": (_SAMPLES, _score),
    "reconstruction": (_RECONSTRUCTION, _reconstruction),
    "tune": (_TUNE, _tune),
    "curves": (_CURVES, _curves),
}
# Of which each option is. --out is of all.
_SCORED = ("samples", "reconstruction", "tune")
_OPTIONS = (
    (_REFERENCE, ("samples", "tune")),
    (_KIND, ("samples", "reconstruction")),
    (_FEATURES, _SCORED),
    (_INCEPTION, _SCORED),
    (_IMAGE_SIZE, ("samples", "reconstruction")),
    (_SAVE, ("samples",)),
    (_IMAGES, ("reconstruction",)),
    (_TOKENIZER, ("reconstruction", "tune")),
    (_NUM, ("reconstruction", "tune")),
    (_CHECKPOINT, ("tune",)),
    (_SCALES, ("tune",)),
    (_POWERS, ("tune",)),
    (_TEMPERATURES, ("tune",)),
    (_SEED, ("tune",)),
    (_BATCH, ("tune",)),
)


def main(argv):
    del argv
    keep_compiled_programs()
    with cli.user_errors():
        modes = [name for name, (flag, _) in _MODES.items() if flag.value]
        if len(modes) != 1:
            names = ", ".join(f"--{name}" for name in _MODES)
            raise UserError(f"name one of {names}; given: {', '.join(modes) or 'none'}")
        cli.check_options(modes, _OPTIONS)
        if modes == ["samples"] and not (_REFERENCE.value or _SAVE.value):
            raise UserError("name what to score against with --reference, or where to save statistics")
        if modes == ["reconstruction"] and not (_IMAGES.value and _TOKENIZER.value):
            raise UserError("--reconstruction needs --images=FOLDER and --tokenizer=WEIGHTS")
        if modes == ["tune"] and not (_CHECKPOINT.value and _REFERENCE.value):
            raise UserError("--tune needs --checkpoint=RUN and --reference")
        check_folder("out", _out(_SAMPLES.value or _IMAGES.value or _CHECKPOINT.value or _CURVES.value[0]))
        if _SAVE.value:
            check_folder("save_statistics", epath.Path(_SAVE.value).parent)
            if not _SAVE.value.endswith(".npz"):
                raise UserError(f"--save_statistics={_SAVE.value} must be an .npz file")
        _MODES[modes[0]][1]()


if __name__ == "__main__":
    cli.run(main)
