import dataclasses

import pytest
from conftest import ROOT
from running import tiny_study

from rar_jax.errors import UserError
from rar_jax.studies.plan import Row, cells_of, label_of, load_study

FILE = """
from rar_jax.studies.plan import Row, Study
from rar_jax.config import imagenet
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
    ],
)
def test_what_a_digest_depends_on(field, value, same):
    changed = tiny_study()
    if field.startswith("base."):
        _, section, name = field.split(".")
        changed.base[section][name] = value
    else:
        changed = dataclasses.replace(changed, **{field: value})
    assert (cells_of(changed)[0].digest == cells_of(tiny_study())[0].digest) == same


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("0-0", {}), "row '0-0' is in the study twice"),
        (Row("a", {"model.dropuot": 1}), "row 'a': config has no field 'model.dropuot'; nearest: model.dropout"),
        (Row("a", {"model.dropout": 1.5}), r"row 'a': config\.model\.dropout=1\.5 must be"),
        (Row("a", {}, orders=("spiral",)), "row 'a': orders='spiral' must be some of target, random"),
        (Row("a", {"eval.num_images": 0}), "row 'a': config.eval.num_images=0 would leave"),
        (Row("a", {"data.name": "synthetic"}), "row 'a': config.data.name='synthetic' must be digits"),
    ],
)
def test_rows_that_are_refused(row, message):
    study = tiny_study()
    with pytest.raises(UserError, match=message):
        cells_of(dataclasses.replace(study, rows=[*study.rows, row]))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {}", r"get_study\(\) must return a rar_jax.studies.plan.Study, not dict"),
        ("return Study(imagenet(), [], seeds=0)", r"study\.seeds=0 must be at least 1"),
        ("return Study(imagenet(), [], compare='fid')", "there is no score 'fid'; choose from"),
        ("return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_study_files_that_are_refused(tmp_path, body, message):
    path = tmp_path / "study.py"
    path.write_text(FILE.replace("return {}", body))
    with pytest.raises(UserError, match=f"study.py: .*{message}"):
        load_study(path)
    with pytest.raises(UserError, match=r"none\.py: there is no such file"):
        load_study(tmp_path / "none.py")


def test_labels():
    assert label_of("random_loss_end") == "loss in random order"
    assert label_of("random_frechet") == "Frechet distance, random order"
