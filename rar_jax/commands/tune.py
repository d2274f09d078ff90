"""Searches for the guidance and temperature with which a model's samples score best.

    python -m rar_jax tune --checkpoint=RUN --reference=FILE_OR_FOLDER --inception=WEIGHTS --guidance_scales=1,2,4

The same command resumes a search that was stopped.
"""

from absl import flags

from rar_jax.commands import cli, shared_flags
from rar_jax.data.sources import check_outside
from rar_jax.errors import UserError
from rar_jax.evaluation.features import open_extractor
from rar_jax.evaluation.report import report_folder, score_label
from rar_jax.evaluation.scoring import PAPERS_IMAGES, Reference
from rar_jax.generate import load
from rar_jax.generation.job_folder import job_images
from rar_jax.generation.tuning import PICTURE, Candidates, tune

_CHECKPOINT = shared_flags.define_checkpoint()
_TOKENIZER = shared_flags.define_model_tokenizer()
_REFERENCE = shared_flags.define_reference()
_FEATURES, _INCEPTION = shared_flags.define_features()
_SCALES = flags.DEFINE_list(
    "guidance_scales",
    [],
    "Guidance scales to try, such as 1,2,4. Default: five values from 0.5 to 1.5 times the run's.",
)
_POWERS = flags.DEFINE_list(
    "guidance_powers", [], "Guidance powers to try. Default: five values from 0.5 to 1.5 times the run's."
)
_TEMPERATURES = flags.DEFINE_list("temperatures", [], "Temperatures to try. Default: the run's temperature.")
_SCORE = flags.DEFINE_enum(
    "score", None, ("inception_score", "glyph_accuracy"),
    "Score to choose the setting by: the Inception Score with --features=inception, or the share of samples that are "
    "recognised as their class with --features=glyphs. Default: the Frechet distance.",
)  # fmt: skip
_NUM = flags.DEFINE_integer("num", 5000, "Number of samples for each setting.", lower_bound=2)
_SEED = shared_flags.define_seed()
_BATCH = shared_flags.define_batch_size()
_OUT = flags.DEFINE_string("out", None, "Folder of the results. Default: evaluation/NAME beside the checkpoint.")


def main(argv):
    del argv
    cli.keep_compiled_programs()
    if not _CHECKPOINT.value or not _REFERENCE.value:
        raise UserError("name a model with --checkpoint=RUN and a reference with --reference")
    out = shared_flags.results_folder(_CHECKPOINT.value, _OUT.value, report_folder)
    numbers = (cli.read_numbers(each, float, "1,1.5") for each in (_SCALES, _POWERS, _TEMPERATURES))
    candidates = Candidates(*numbers)
    images = job_images(_REFERENCE.value)
    check_outside(images, "--out", out)
    extractor = open_extractor(_FEATURES.value, _INCEPTION.value)
    reference = Reference(images, None)
    generator = load(_CHECKPOINT.value, tokenizer=_TOKENIZER.value)
    found = tune(
        generator, reference, extractor, candidates, out,
        score=_SCORE.value, num=_NUM.value, seed=_SEED.value, batch_size=_BATCH.value,
    )  # fmt: skip
    print(f"{out / PICTURE}: {len(found.values)} settings, {_NUM.value:,} images each, by {score_label(found.score)}")
    print(f"best ({found.values[found.best]:.4g}): {found.best.flags()}")
    if _NUM.value < PAPERS_IMAGES:
        print(f"Scores of {_NUM.value:,} images can be compared only with scores of this search.")
