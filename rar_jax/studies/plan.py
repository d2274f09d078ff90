"""A study: rows of settings that are trained with several seeds and compared. This module imports no network."""

import dataclasses
import hashlib
import json
import runpy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from etils import epath

from rar_jax.config import Config, from_config_dict
from rar_jax.errors import UserError
from rar_jax.fields import check_fields, setting
from rar_jax.schema import field_paths, flat_fields, unknown_field

# The orders in which a study samples: the config's scan order, and a random order for each image.
TARGET, RANDOM = "target", "random"
_ORDERS = (TARGET, RANDOM)
# The label of every score, for tables and figures.
LABELS = {
    "validation_end": "validation loss at the end",
    "validation_best": "validation loss at the best step",
    "loss_end": "loss at the end",
    "loss_best": "loss at the best step",
    "random_loss_end": "loss in random order",
    "random_loss_best": "loss in random order at the best step",
    "frechet": "Frechet distance",
    "frechet_guided": "Frechet, guided",
    "precision": "precision",
    "precision_guided": "precision, guided",
    "recall": "recall",
    "recall_guided": "recall, guided",
    "accuracy": "recognised",
    "accuracy_guided": "recognised, guided",
    "nearest": "distance to training images",
    "nearest_guided": "distance to training images, guided",
    "guidance_scale": "guidance scale",
    "best_step": "best step",
}
# The scores in the table of a study that names none.
COLUMNS = (
    "loss_end", "loss_best", "random_loss_end", "frechet", "frechet_guided", "precision_guided", "recall_guided",
    "accuracy_guided", "nearest_guided",
)  # fmt: skip
# Prefixes of fields that may change when a run resumes (`Config.may_change`), but that the scores depend on.
_SCORES_DEPEND_ON = ("eval.every", "eval.num_images", "eval.score_", "sample.", "train.stop_step")
_DIGEST_LENGTH = 16


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
      digest: identifies everything that the results depend on, except the version of the code.
    """

    row: Row
    seed: int
    config: Config
    digest: str

    @property
    def name(self) -> str:
        """Name of the cell in messages and of its folder."""
        return f"{self.row.label.replace('/', '_').replace(' ', '_')}-seed{self.seed}"


def load_study(path: epath.PathLike) -> Study:
    """Returns the study of a file, which defines `get_study()`.

    Raises:
      UserError: there is no such file, it raises an exception, or the study is not valid.
    """
    if not epath.Path(path).is_file():
        raise UserError(f"{path}: there is no such file; name a study, such as configs/studies/annealing.py")
    try:
        study = runpy.run_path(str(path))["get_study"]()
    # A study file is Python code of the user, which can raise any exception.
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from None
    if not isinstance(study, Study):
        raise UserError(f"{path}: get_study() must return a rar_jax.studies.plan.Study, not {type(study).__name__}")
    check_fields(study, f"{path}: study.")
    for score in (study.compare, *study.columns):
        if _plain(score) not in LABELS:
            raise UserError(f"{path}: there is no score {score!r}; choose from {', '.join(LABELS)}")
    return study


def _plain(score: str) -> str:
    """Returns the name of a score without the name of an order before it."""
    return score if score in LABELS else score.removeprefix(f"{RANDOM}_").removeprefix(f"{TARGET}_")


def label_of(score: str) -> str:
    """Returns the label of a score, which may have the name of an order before its own."""
    plain = _plain(score)
    return LABELS[plain] + (f", {score.removesuffix(f'_{plain}')} order" if plain != score else "")


def cells_of(study: Study) -> list[Cell]:
    """Returns the cells of a study: all rows with the first seed, then all with the second, and so on.

    Raises:
      UserError: a row has an unknown field, a config that is not valid, or the label of another row; or the data of a
        row cannot be scored.
    """
    labels = [row.label for row in study.rows]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"row {label!r} is in the study twice: give each row its own label")
    return [_cell(study, row, seed) for seed in range(study.seeds) for row in study.rows]


def _cell(study: Study, row: Row, seed: int) -> Cell:
    fields = study.base.copy_and_resolve_references()
    fields.seed, fields.name = seed, f"{row.label}-{seed}"
    for path, value in row.fields.items():
        if path not in field_paths(Config):
            raise UserError(f"row {row.label!r}: {unknown_field(path, Config)}")
        *sections, name = path.split(".")
        section = fields
        for each in sections:
            section = section[each]
        section[name] = value
    # The best step is chosen among checkpoints, so that every evaluation has one.
    fields.checkpoint.update(every=fields.eval.every, best_metric="heldout/target_loss", keep=1)
    try:
        config = from_config_dict(fields)
    except UserError as error:
        raise UserError(f"row {row.label!r}: {error}") from None
    if not config.eval.num_images:
        raise UserError(f"row {row.label!r}: config.eval.num_images=0 would leave no held-out images to report")
    if config.data.name != "digits":
        raise UserError(f"row {row.label!r}: config.data.name={config.data.name!r} must be digits, which are scored")
    if unknown := [order for order in row.orders if order not in _ORDERS]:
        raise UserError(f"row {row.label!r}: orders={unknown[0]!r} must be some of {', '.join(_ORDERS)}")
    return Cell(row, seed, config, _digest(study, row, config))


def _digest(study: Study, row: Row, config: Config) -> str:
    """Returns a digest of all settings that the results of a cell depend on.

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
