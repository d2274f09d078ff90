"""Scores samples against a reference: FID, sFID, Inception Score, precision and recall.

python -m rar_jax evaluate --samples=samples.npz --reference=VIRTUAL_imagenet256_labeled.npz --inception=WEIGHTS
python -m rar_jax evaluate --samples=FOLDER --features=pixels --save_statistics=statistics.npz
"""

from absl import flags
from etils import epath

from rar_jax.commands import cli, shared_flags
from rar_jax.data.sources import check_outside
from rar_jax.errors import UserError
from rar_jax.evaluation.evaluate import evaluate_samples, save_statistics
from rar_jax.evaluation.features import open_extractor
from rar_jax.evaluation.image_sets import open_images
from rar_jax.evaluation.references import check_statistics_file
from rar_jax.evaluation.report import report_folder
from rar_jax.evaluation.scoring import Reference
from rar_jax.generation.job_folder import job_images
from rar_jax.run_folder import check_folder

_SAMPLES = flags.DEFINE_string("samples", None, "Images to score: an .npz (arr_0), a folder, or a sampling job.")
_REFERENCE = shared_flags.define_reference()
_KIND = shared_flags.define_reference_kind()
_FEATURES, _INCEPTION = shared_flags.define_features()
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "Side in pixels of the centre square (ADM's crop) to cut from images of folders. Default: no cut.",
    1,
)
_OUT = flags.DEFINE_string("out", None, "Folder of the report. Default: evaluation/NAME beside the samples.")
_SAVE = flags.DEFINE_string(
    "save_statistics", None, "File (.npz) for the statistics of the samples, with the names that ADM uses."
)


def _check() -> None:
    """Raises a `UserError` if a flag is missing or an output cannot be written."""
    if not _SAMPLES.value:
        raise UserError("name the images to score with --samples")
    if not (_REFERENCE.value or _SAVE.value):
        raise UserError("name what to score against with --reference, or a file for --save_statistics")
    if not _REFERENCE.value:
        shared_flags.refuse((_OUT, _KIND), "save_statistics")
    if _SAVE.value:
        check_folder("save_statistics", epath.Path(_SAVE.value).parent)
        if _REFERENCE.value and epath.Path(_SAVE.value).resolve() == epath.Path(_REFERENCE.value).resolve():
            raise UserError(f"--save_statistics={_SAVE.value} would replace the reference: choose another name")
        check_statistics_file("save_statistics", _SAVE.value)


def main(argv):
    del argv
    cli.keep_compiled_programs()
    _check()
    out = epath.Path(_OUT.value or report_folder(_SAMPLES.value))
    check_folder("out", out)
    paths = [job_images(each) for each in (_SAMPLES.value, _REFERENCE.value) if each]
    for path in paths:
        check_outside(path, "--out", out)
    # Before the images are listed, which takes minutes on a network disk.
    extractor = open_extractor(_FEATURES.value, _INCEPTION.value)
    samples = open_images(paths[0], _IMAGE_SIZE.value)
    if _REFERENCE.value:
        reference = Reference(paths[1], _KIND.value, _IMAGE_SIZE.value)
        evaluate_samples(samples, reference, extractor, out, image_size=_IMAGE_SIZE.value, statistics=_SAVE.value)
    else:
        save_statistics(samples, extractor, _SAVE.value)
    if _SAVE.value:
        print(f"{_SAVE.value}: statistics of {len(samples):,} images")
