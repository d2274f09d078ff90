import dataclasses

import pytest
from conftest import ROOT
from running import tiny_study

from rar_jax.errors import UserError
from rar_jax.studies.plan import RANDOM, TARGET, Row, cells_of, load_study, scores_of

FILE = """
from rar_jax.studies.plan import Row, Study
from rar_jax.config import imagenet
ROWS = [Row("a", {})]
def get_study():
    return {}
"""


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.py")), ids=lambda path: path.stem)
def test_the_studies_that_ship_are_valid(path):
    study = load_study(path)
    cells = cells_of(study)
    assert study.title and len(cells) == len(study.rows) * study.seeds
    assert len({cell.digest for cell in cells}) == len({cell.name for cell in cells}) == len(cells)


def test_the_cells_of_a_study():
    cells = cells_of(tiny_study(seeds=2))
    # All rows come with one seed before any comes with the next.
    assert [(cell.row.label, cell.seed, cell.config.seed) for cell in cells] == [
        ("0-0", 0, 0), ("0-1", 0, 0), ("0-0", 1, 1), ("0-1", 1, 1),
    ]  # fmt: skip
    assert [cell.config.anneal_steps for cell in cells[:2]] == [(0, 0), (0, 11)]
    assert cells[0].config.checkpoint.every == cells[0].config.eval.every


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("seeds", 3, True),
        ("title", "another", True),
        ("samples", 40, False),
        ("base.train.log_every", 7, True),
        ("base.optimizer.learning_rate", 1e-4, False),
        ("base.eval.every", 22, False),
        ("base.sample.guidance_power", 1.0, False),
        ("base.init_from", "runs/other", False),
    ],
)
def test_what_a_digest_depends_on(field, value, same):
    changed = tiny_study()
    if field.startswith("base."):
        changed.base.update_from_flattened_dict({field.removeprefix("base."): value})
    else:
        changed = dataclasses.replace(changed, **{field: value})
    assert (cells_of(changed)[0].digest == cells_of(tiny_study())[0].digest) == same


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("0-0", {}), "row '0-0' is in the study twice"),
        (Row("a", {"model.dropuot": 1}), "row 'a': config has no field 'model.dropuot'; nearest: model.dropout"),
        (Row("a", {"model.dropout": 1.5}), r"row 'a': config\.model\.dropout=1\.5 must be"),
        (Row("a", {"model.dropout": "0.1"}), r"row 'a': config\.model\.dropout='0\.1': "),
        (Row("a", {"seed": 3}), "row 'a': seed=3: the study sets this field"),
        (Row("a", {}, orders=("spiral",)), r"row 'a': orders=\('spiral',\) must be some of target, random"),
        (Row("a", {}, orders=()), r"row 'a': orders=\(\) must be some of"),
        (Row("a", {"eval.num_images": 0}), "row 'a': config.eval.num_images=0 must be from 2 to 356"),
        (Row("a", {"eval.num_images": 357}), "row 'a': config.eval.num_images=357 must be from 2 to 356"),
        (Row("a", {"data.name": "synthetic"}), "row 'a': config.data.name='synthetic' must be digits"),
        (Row("a", tiny_study().rows[0].fields), "row 'a' has the same settings as row '0-0': leave one out"),
    ],
)
def test_rows_that_are_refused(row, message):
    study = tiny_study()
    with pytest.raises(UserError, match=message):
        cells_of(dataclasses.replace(study, rows=[*study.rows, row]))


@pytest.mark.parametrize("field", ["score_every", "report_samples"])
def test_a_study_that_chooses_scores_no_samples(field):
    study = tiny_study()
    study.base.eval[field] = 22
    assert cells_of(study)
    study = dataclasses.replace(study, choosing=True, compare="validation_end", columns=("validation_end",))
    with pytest.raises(UserError, match=rf"config\.eval\.{field}=22 must be 0 in a study"):
        cells_of(study)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {}", r"it must define get_study\(\), which returns a rar_jax.studies.plan.Study"),
        ("return Study(imagenet(), ROWS, seeds=0)", r"study\.seeds=0 must be at least 1"),
        (
            "return Study(imagenet(), ROWS, compare='fid')",
            r"study\.compare: 'fid' is no score of the study; choose from",
        ),
        (
            "return Study(imagenet(), ROWS, columns=('random_frechet',))",
            r"study\.columns: 'random_frechet' is no score",
        ),
        ("return Study(imagenet(), ROWS, choosing=True)", r"study\.compare: 'loss_end' is no score .* validation_end,"),
        (
            "return Study(imagenet(), ROWS, compare='accuracy')",
            r"study\.compare='accuracy' must be .* better if smaller",
        ),
        (
            "return Study(imagenet(), ROWS, guidance_scales=())",
            r"guidance_scales=\(\) must be one or more numbers",
        ),
        (
            "return Study(imagenet(), ROWS, guidance_scales=(2, -1.0))",
            r"guidance_scales=\(2, -1\.0\) must be one",
        ),
        ("return Study(imagenet(), [])", r"study\.rows must be a list of one or more rar_jax\.studies\.plan\.Row"),
        ("return Study(imagenet(), [('a', {})])", r"study\.rows has \('a', {}\): it must be a rar_jax.*plan\.Row\("),
        ("return Study(imagenet(), [Row(0.1, {})])", r"study\.rows has Row\(label=0\.1, .*: it must be a"),
        ("return Study(imagenet(), ROWS, seeds=3.0)", r"study\.seeds=3\.0 must be of the type int"),
        ("return Study(imagenet(), ROWS, guidance_scales=2.0)", r"guidance_scales=2\.0 must be of the type tuple"),
        ("return Study(imagenet, ROWS)", r"study\.base=<function imagenet .*> must be of the type ConfigDict"),
        ("return 1 / 0", "line 6: ZeroDivisionError"),
    ],
)
def test_study_files_that_are_refused(tmp_path, body, message):
    path = tmp_path / "study.py"
    path.write_text(FILE.replace("return {}", body))
    with pytest.raises(UserError, match=f"study.py[:,] .*{message}"):
        load_study(path)
    with pytest.raises(UserError, match=r"none\.py: there is no such file"):
        load_study(tmp_path / "none.py")


def test_scores_in_other_orders():
    study = tiny_study()
    assert "random_frechet" not in scores_of(study)
    study = dataclasses.replace(study, rows=[*study.rows, Row("both", {}, orders=(TARGET, RANDOM))])
    scores = scores_of(study)
    assert scores["random_frechet"].label == "Frechet distance, random order"
    assert scores["random_loss_end"].label == "loss in random order at the end" and "random_loss_best" in scores
