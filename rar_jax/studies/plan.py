"""A study: rows of settings that are trained with several seeds and compared. This module imports no network."""

import dataclasses
import hashlib
import json
import math
import runpy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from etils import epath

from rar_jax.config import Config, from_config_dict
from rar_jax.data.digits import digits_split
from rar_jax.errors import UserError, mistake_in_file, naming
from rar_jax.fields import check_fields, setting
from rar_jax.schema import check_run, field_paths, flat_fields, unknown_field

# The orders in which a study samples: the config's scan order, and a random order for each image.
TARGET, RANDOM = "target", "random"
_ORDERS = (TARGET, RANDOM)


class Score(NamedTuple):
    """A score of a cell.

    Attributes:
      label: its name in tables and figures.
      compared: whether rows can be compared by it, which needs that smaller values are better.
    """

    label: str
    compared: bool = True


# Scores by the validation images. A study that chooses settings has no others.
VALIDATION_SCORES = {
    "validation_end": Score("validation loss at the end"),
    "validation_best": Score("validation loss at the best step"),
    "best_step": Score("best step", compared=False),
}
_LOSSES = {
    "loss_end": Score("loss at the end"),
    "loss_best": Score("loss at the best step"),
    "random_loss_end": Score("loss in random order at the end"),
    "random_loss_best": Score("loss in random order at the best step"),
}
# Scores of samples. Those in orders other than a row's first one have the order's name before theirs.
_SAMPLE_SCORES = {
    "frechet": Score("Frechet distance"),
    "frechet_guided": Score("Frechet, guided"),
    "precision": Score("precision", compared=False),
    "precision_guided": Score("precision, guided", compared=False),
    "recall": Score("recall", compared=False),
    "recall_guided": Score("recall, guided", compared=False),
    "accuracy": Score("recognised", compared=False),
    "accuracy_guided": Score("recognised, guided", compared=False),
    "nearest": Score("distance to training images", compared=False),
    "nearest_guided": Score("distance to training images, guided", compared=False),
    "guidance_scale": Score("guidance scale", compared=False),
}
# What is kept of the evaluations during training: name -> title of its panel.
CURVES = {
    "heldout/target_loss": "validation loss in the target order",
    "heldout/random_loss": "validation loss in random order",
    "train/target_loss": "training loss in the target order",
    "score/frechet_pixels_unguided": "Frechet distance without guidance",
    "score/frechet_pixels_guided": "Frechet distance with guidance",
}
# The scores in the table of a study that names none.
COLUMNS = (
    "loss_end", "loss_best", "random_loss_end", "frechet", "frechet_guided", "precision_guided", "recall_guided",
    "accuracy_guided", "nearest_guided",
)  # fmt: skip
# Prefixes of fields that may change when a run resumes (`Config.may_change`), but that the scores depend on.
_SCORES_DEPEND_ON = ("eval.every", "eval.num_images", "eval.score_", "init_from", "sample.", "train.stop_step")
# Prefixes of fields that the study sets itself.
_SET_BY_STUDY = ("seed", "name", "checkpoint.")
_DIGEST_LENGTH = 16
# Precision and recall use the third neighbour of each test image; a covariance needs two validation images.
_LEAST_TEST_IMAGES, _LEAST_VALIDATION_IMAGES = 4, 2


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting of a study, trained with every seed.

    Attributes:
      label: its name in tables and figures.
      fields: what differs from the base config, such as {"model.dropout": 0.2}.
      paper: the paper's FID of this setting, if it has one.
      orders: the orders in which samples are drawn, `TARGET` or `RANDOM`. Scores in orders other than the first have
        the order's name before theirs.
    """

    label: str
    fields: Mapping[str, Any]
    paper: float | None = None
    orders: tuple[str, ...] = (TARGET,)


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study file returns.

    Attributes:
      base: the config that the rows change, a Python config as in configs/.
      rows: the settings.
    """

    base: ml_collections.ConfigDict
    rows: Sequence[Row]
    title: str = setting("", "Title of the figure and the table.")
    seeds: int = setting(5, "Number of seeds of each row, from 0.", at_least=1)
    compare: str = setting("loss_end", "Score by which rows are compared; smaller is better.")
    columns: tuple = setting(COLUMNS, "Scores in the table.")
    samples: int = setting(1000, "Samples that are scored, with and without guidance.", at_least=4)
    tuning_samples: int = setting(500, "Samples for each guidance scale that is tried.", at_least=4)
    choosing: bool = setting(
        False,
        "Whether the study chooses settings for others: it then reads only the validation images, and no samples.",
    )
    guidance_scales: tuple = setting((1.25, 1.5, 2.0, 3.0, 4.0), "Guidance scales that are tried for every cell.")


class Cell(NamedTuple):
    """A row with one seed: a training run and its scores.

    Attributes:
      row: the row.
      seed: the seed.
      config: the config of the run.
      digest: identifies the settings that the results depend on. The version of the code, the platform, and fields that
        change rounding alone, such as `train.remat` or `mesh.fsdp`, are not among them.
    """

    row: Row
    seed: int
    config: Config
    digest: str

    @property
    def name(self) -> str:
        """Name of the cell in messages and of its folder. Cells with other settings have another digest in it."""
        return f"{self.row.label.replace('/', '_').replace(' ', '_')}-seed{self.seed}-{self.digest}"


def load_study(path: epath.PathLike) -> Study:
    """Returns the study of a file, which defines `get_study()`.

    Raises:
      UserError: there is no such file, it raises an exception, or the study is not valid.
    """
    if not epath.Path(path).is_file():
        raise UserError(f"{path}: there is no such file; name a study, such as configs/studies/annealing.py")
    try:
        get_study = runpy.run_path(str(path)).get("get_study")
        study = get_study and get_study()
    # A study file is Python code of the user, which can raise any exception.
    except Exception as error:
        raise UserError(mistake_in_file(path, error) or f"{path}: {type(error).__name__}: {error}") from None
    if not isinstance(study, Study):
        raise UserError(f"{path}: it must define get_study(), which returns a rar_jax.studies.plan.Study")
    with naming(str(path)):
        _check_types(study)
        check_fields(study, "study.")
        _check_scores(study)
    return study


def _check_types(study: Study) -> None:
    """Raises a `UserError` if a value of the study has another type than its field."""
    if not isinstance(study.rows, Sequence) or not study.rows:
        raise UserError("study.rows must be a list of one or more rar_jax.studies.plan.Row")
    for row in study.rows:
        if not isinstance(row, Row) or not isinstance(row.label, str) or not isinstance(row.fields, Mapping):
            raise UserError(f"study.rows has {row!r}: it must be a rar_jax.studies.plan.Row(label, {{field: value}})")
    for field in dataclasses.fields(study):
        value, kind = getattr(study, field.name), field.type
        if isinstance(kind, type) and not isinstance(value, (tuple, list) if kind is tuple else kind):
            raise UserError(f"study.{field.name}={value!r} must be of the type {kind.__name__}")


def _check_scores(study: Study) -> None:
    """Raises a `UserError` if the table or the comparison needs a score that no row has, or guidance has no scales."""
    known = scores_of(study)
    for field, names in (("compare", (study.compare,)), ("columns", study.columns)):
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"study.{field}: {unknown[0]!r} is no score of the study; choose from {', '.join(known)}")
    if not known[study.compare].compared:
        better = ", ".join(name for name, score in known.items() if score.compared)
        raise UserError(f"study.compare={study.compare!r} must be a score that is better if smaller: {better}")
    scales = study.guidance_scales
    if not scales or not all(type(scale) in (int, float) and 0 <= scale < math.inf for scale in scales):
        raise UserError(f"study.guidance_scales={scales!r} must be one or more numbers, each at least 0")


def scores_of(study: Study) -> dict[str, Score]:
    """Returns the scores that rows of a study have, by name."""
    if study.choosing:
        return VALIDATION_SCORES
    scores = VALIDATION_SCORES | _LOSSES | _SAMPLE_SCORES
    for order in sorted({order for row in study.rows for order in row.orders[1:]}):
        scores |= {
            f"{order}_{name}": Score(f"{label}, {order} order", compared)
            for name, (label, compared) in _SAMPLE_SCORES.items()
        }
    return scores


def cells_of(study: Study) -> list[Cell]:
    """Returns the cells of a study: all rows with the first seed, then all with the second, and so on.

    Raises:
      UserError: a row has an unknown field, a config that is not valid, or the label or the settings of another row; or
        the data of a row cannot be scored.
    """
    labels = [row.label for row in study.rows]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"row {label!r} is in the study twice: give each row its own label")
    cells, rows = [], {}
    for seed in range(study.seeds):
        for row in study.rows:
            with naming(f"row {row.label!r}"):
                cells.append(_cell(study, row, seed))
            if (first := rows.setdefault(cells[-1].digest, row.label)) != row.label:
                raise UserError(f"row {row.label!r} has the same settings as row {first!r}: leave one out")
    return cells


def _cell(study: Study, row: Row, seed: int) -> Cell:
    """Returns a cell. Raises a `UserError`, without the row's name, if it cannot be trained or scored."""
    fields = study.base.copy_and_resolve_references()
    fields.seed, fields.name = seed, f"{row.label}-{seed}"
    for path, value in row.fields.items():
        if path not in field_paths(Config):
            raise UserError(unknown_field(path, Config))
        if path.startswith(_SET_BY_STUDY):
            raise UserError(f"{path}={value!r}: the study sets this field; leave it out")
        *sections, name = path.split(".")
        section = fields
        for each in sections:
            section = section[each]
        try:
            section[name] = value
        except TypeError as error:
            raise UserError(f"config.{path}={value!r}: {error}") from None
    # The best step is chosen among checkpoints, so that every evaluation has one.
    fields.checkpoint.update(every=fields.eval.every, best_metric="heldout/target_loss", keep=1)
    config = from_config_dict(fields)
    check_run(config)
    if config.data.name != "digits":
        raise UserError(f"config.data.name={config.data.name!r} must be digits, which are scored")
    most = len(digits_split("heldout")[1]) - _LEAST_TEST_IMAGES
    if not _LEAST_VALIDATION_IMAGES <= config.eval.num_images <= most:
        raise UserError(
            f"config.eval.num_images={config.eval.num_images} must be from {_LEAST_VALIDATION_IMAGES} to {most}: the "
            "other held-out digits are the test images"
        )
    for name in ("score_every", "report_samples"):
        if study.choosing and (value := getattr(config.eval, name)):
            raise UserError(
                f"config.eval.{name}={value} must be 0 in a study with choosing=True: its scores use the test images"
            )
    if not row.orders or not set(row.orders) <= set(_ORDERS):
        raise UserError(f"orders={row.orders} must be some of {', '.join(_ORDERS)}")
    return Cell(row, seed, config, _digest(study, row, config))


def _digest(study: Study, row: Row, config: Config) -> str:
    """Returns the digest of a cell's settings; see `Cell`.

    Values of the config that are its defaults are left out, so that a new field of the config changes no digest.
    """
    default = flat_fields(Config())
    kept = {
        path: value
        for path, value in flat_fields(config).items()
        if value != default[path] and (not config.may_change(path) or path.startswith(_SCORES_DEPEND_ON))
    }
    kept |= (
        {"choosing": study.choosing}
        if study.choosing
        else {
            "orders": row.orders,
            "samples": study.samples,
            "tuning_samples": study.tuning_samples,
            "guidance_scales": study.guidance_scales,
        }
    )
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:_DIGEST_LENGTH]
