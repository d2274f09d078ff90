"""The page of the results of launch/own_images.sh: pictures, curves, scores, and the commands to go on with."""

import shlex
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from rar_jax.config import Config
from rar_jax.data.class_names import class_names, class_text
from rar_jax.data.records import read_description
from rar_jax.errors import UserError
from rar_jax.evaluation.image_sets import NpzImages, take
from rar_jax.evaluation.report import read_report, score_label, score_text
from rar_jax.files import printable, write_atomically
from rar_jax.generation.job_folder import FILES, job_images
from rar_jax.generation.pictures import SampleGrid
from rar_jax.images.files import write_png
from rar_jax.own_images.html import Picture, Section, render
from rar_jax.own_images.plan import RAR, TEXT
from rar_jax.run_folder import read_config
from rar_jax.training.metrics import read_metrics

PAGE = "index.html"
# Classes of a picture of samples, and samples of each.
_ROWS, _COLUMNS = 16, 8
# Images of at most this side can be compared by their pixels.
_SMALL = 64
_NAMED = 3
# The folders of evaluation that hold reports.
_REPORTS = ("samples", "nearest")
# What is shown of the metrics of both runs: label, format and meaning.
_MEASURED = {
    "heldout/psnr": ("PSNR of reconstructions, dB", ".2f", "how close the tokenizer comes to held-out images"),
    "heldout/ssim": ("SSIM of reconstructions", ".3f", "the same, compared by local structure; 1 for equal images"),
    "heldout/codebook_use": ("codes in use", ".1%", "share of the codebook that held-out images use"),
    "heldout/rfid": ("rFID of reconstructions", ".2f", "Frechet distance to the images before reconstruction"),
    "heldout/target_loss": ("held-out loss, nats per token", ".3f", "of the RAR, in the order in which it samples"),
    "train/target_loss": ("the same on training images", ".3f", "much lower than on held-out ones: overfitting"),
}
# What the scores of reports mean.
_REPORTED = {
    "nearest_samples": "median distance of samples to their nearest training image, in grey levels",
    "nearest_heldout": "the same for held-out images; if it is much larger than for samples, the model copies",
    "near_samples": "about 1% if the model does not copy",
    "frechet_glyphs": "distance of the features of a classifier of glyphs to those of held-out glyphs",
    "glyph_accuracy": "samples that a classifier of glyphs recognises as their class",
    "fid": "Frechet distance to the held-out images; compare it only for equal numbers of images",
}


def write_page(run: epath.PathLike) -> epath.Path:
    """Writes index.html, and the pictures of the samples that it shows.

    Args:
      run: the folder that launch/own_images.sh writes, with the folders tokenizer, tokens, rar, samples and evaluation.

    Returns:
      The file.

    Raises:
      UserError: a run or the samples are missing.
    """
    run = epath.Path(run)
    config = read_config(run / "rar")
    names = tuple(map(printable, class_names(config) or map(str, range(config.model.num_classes))))
    train, heldout = (read_description(run / "tokens" / part).num_images for part in ("train", "heldout"))
    some = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
    lead = (
        f"A RAR trained on {train:,} images of {len(names):,} classes, {config.data.image_size} x "
        f"{config.data.image_size} pixels, with a tokenizer of their own. {heldout:,} more images are held out."
    )
    sections = [
        _samples(run, names),
        _scores(run),
        *_nearest(run),
        *_training(run),
        _commands(run, config, names),
    ]
    write_atomically(run / PAGE, render(f"Generator of images: {some}", lead, sections))
    return run / PAGE


def _samples(run: epath.Path, names: Sequence[str]) -> Section:
    file = job_images(run / "samples")
    if file.name != FILES["npz"]:
        raise UserError(f"{run / 'samples'} has no {FILES['npz']}: sample with --npz")
    images, pictures = NpzImages(file), []
    for start in range(0, len(names), _ROWS):
        own = np.flatnonzero((images.labels >= start) & (images.labels < start + _ROWS))
        if not len(own):
            continue
        grid = SampleGrid(images.labels[own], names, (_ROWS, _COLUMNS))
        name = f"samples/classes_{start // _ROWS:03d}.png"
        write_png(run / name, grid.draw(take(images, own[grid.numbers])))
        alt = f"Grid of generated images, one class per row: {', '.join(names[start : start + _ROWS])}"
        pictures.append(Picture(name, alt, "Generated images, one class per row."))
    return Section("Samples", pictures=pictures)


def _scores(run: epath.Path) -> Section:
    measured = {
        k: v for folder in ("tokenizer", "rar") for entry in read_metrics(run / folder) for k, v in entry.items()
    }
    rows = [
        (label, format(measured[name], style), meaning)
        for name, (label, style, meaning) in _MEASURED.items()
        if name in measured
    ]
    texts = ["The images of these scores were held out from training, unless a line says otherwise."]
    for name in _REPORTS:
        report = read_report(run / "evaluation" / name) or {"scores": {}, "warnings": []}
        rows += [(score_label(k), score_text(k, v), _REPORTED.get(k, "")) for k, v in report["scores"].items()]
        texts += [f"Warning: {warning}." for warning in report["warnings"]]
    if not read_report(run / "evaluation" / "samples"):
        texts.append(
            "With the weights of the FID Inception network (INCEPTION=WEIGHTS), the tokenizer also has a perceptual "
            "loss and rFID, and the samples have FID, Inception Score, precision and recall against held-out images."
        )
    return Section("Scores", texts, rows)


def _nearest(run: epath.Path) -> Iterator[Section]:
    if read_report(run / "evaluation" / "nearest"):
        alt = "The samples that are nearest to training images, and below each sample that training image"
        caption = f"{alt}. Where both are equal, the model copies."
        yield Section("Nearest training images", pictures=[Picture("evaluation/nearest/report.png", alt, caption)])


def _training(run: epath.Path) -> Iterator[Section]:
    if (run / TEXT).exists():
        yield Section("Plan", (run / TEXT).read_text().splitlines())
    pictures = _curves("tokenizer")
    if steps := sorted((run / "tokenizer" / "reconstructions").glob("*.png")):
        text = "Held-out images, and below them their reconstructions"
        pictures.insert(0, Picture(f"tokenizer/reconstructions/{steps[-1].name}", text, f"{text}."))
    yield Section("Tokenizer", pictures=pictures)
    yield Section("Training of the RAR", pictures=_curves("rar"))


def _curves(name: str) -> list[Picture]:
    text = "Losses, schedules and scores over the steps of training"
    return [Picture(f"{name}/figures/curves.png", text, f"{text}.")]


def _commands(run: epath.Path, config: Config, names: Sequence[str]) -> Section:
    names_in_run = ("rar", RAR, "more", "longer", "samples", "images/heldout", "evaluation/inception")
    rar, plan, more, longer, samples, heldout, inception = (shlex.quote(str(run / name)) for name in names_in_run)
    first = shlex.quote(class_text(0, names))
    features = "--features=pixels" if config.data.image_size <= _SMALL else "--inception=WEIGHTS"
    if report := read_report(run / "evaluation" / "samples"):
        own = report["inputs"]["features"]
        features = "--inception=WEIGHTS" if own == "inception" else f"--features={own}"
    commands = [
        (
            f"Sample the class {names[0]}, with another guidance scale",
            f"python -m rar_jax sample --checkpoint={rar} --classes={first} --num=16 --guidance_scale=2 --out={more}",
        ),
        (
            "Find the best guidance for these images",
            f"python -m rar_jax tune --checkpoint={rar} --reference={heldout} {features} --num=1000",
        ),
        (
            "Score the samples with the FID Inception network",
            f"python -m rar_jax evaluate --samples={samples} --reference={heldout} "
            f"--image_size={config.data.image_size} --inception=WEIGHTS --out={inception}",
        ),
        (
            "Use the generator in Python",
            f"from rar_jax.generate import load\nimages = load({str(run / 'rar')!r}).generate([0, 0, 0, 0], seed=1)",
        ),
    ]
    if (run / RAR).exists():
        commands.append(
            (
                f"Train for longer: change the epochs and the annealing window in {run / RAR}, and train elsewhere",
                f"python -m rar_jax.main --config={plan} --workdir={longer}",
            )
        )
    return Section("Next steps", commands=commands)
