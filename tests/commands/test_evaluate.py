import dataclasses
import json

import numpy as np
import pytest
from absl import flags

from rar_jax.commands import evaluate
from rar_jax.data.digits import digits_split
from rar_jax.evaluation import scoring
from rar_jax.evaluation.features import PixelExtractor
from rar_jax.evaluation.image_sets import open_images
from rar_jax.evaluation.report import Report, begin_report, write_report
from rar_jax.sampling.options import Options


def test_beside_a_sample_is_the_image_that_its_features_are_nearest_to(tmp_path, monkeypatch):
    """Copies of images of the reference, of which every third or so is compared with."""
    monkeypatch.setattr(scoring, "_REFERENCE_FEATURES", 100)
    images, extractor = digits_split("heldout")[0], PixelExtractor()
    np.savez(tmp_path / "reference.npz", images)
    reference = scoring.Reference(tmp_path / "reference.npz", None)
    reference.prepare(extractor)
    assert len(reference.pool) == 100 and reference.places[-1] > 300
    np.savez(tmp_path / "copies.npz", images[reference.places])
    copies = open_images(tmp_path / "copies.npz")
    picture = evaluate._neighbours(scoring.summarise(copies, extractor, "copies", 100, show=8), reference)
    # Two rows of a sample and its five nearest in a line, with a gap between.
    rows = picture.images.reshape(-1, picture.columns, *images.shape[1:])
    for first in (0, 7):
        np.testing.assert_array_equal(rows[:, first], rows[:, first + 1])
    assert "(100 of its 360 images, spread over all; unnamed images" in picture.title


@pytest.fixture
def given():
    """Sets flags of the command."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    saved = flags.FLAGS.flag_values_dict()
    yield lambda **values: [setattr(flags.FLAGS, name, value) for name, value in values.items()]
    for name, value in saved.items():
        setattr(flags.FLAGS, name, value)


@pytest.mark.parametrize(
    ("scored", "folder"),
    [
        ("samples.npz", "evaluation/samples"),
        ("runs/anneal_0.5", "evaluation/anneal_0.5"),
        ("runs/anneal_0.5/checkpoints/12", "evaluation/anneal_0.5"),
        ("runs/rar_b.bin", "evaluation/rar_b"),
        ("runs/anneal_0.5/.", "evaluation/anneal_0.5"),
    ],
)
def test_a_report_is_by_default_beside_what_it_is_of(given, tmp_path, scored, folder):
    (tmp_path / "runs" / "anneal_0.5" / "checkpoints" / "12").mkdir(parents=True)
    given(out=None)
    above = tmp_path / "runs" if scored.startswith("runs") else tmp_path
    assert evaluate._out(str(tmp_path / scored)) == above / folder
    given(out="elsewhere")
    assert str(evaluate._out(str(tmp_path / scored))) == "elsewhere"


def test_of_the_folder_one_is_in(given, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path / "images")
    given(out=None)
    assert evaluate._out(".") == tmp_path / "evaluation" / "images"


def test_scores_are_said_although_they_cannot_be_written(tmp_path, capsys, monkeypatch):
    begin_report(tmp_path / "new", {"samples": "a"})
    report = Report("title", {"samples": "a"}, {}, {"fid": 2.5}, [])

    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr("rar_jax.evaluation.report.write_atomically", full)
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path / "new", report, [])
    assert "2.500" in capsys.readouterr().out


def test_a_report_of_something_else_stays(tmp_path):
    report = Report("title", {"samples": "a", "image_size": None}, {}, {"fid": 2.5}, [])
    (tmp_path / "report.json").write_text(json.dumps(dataclasses.asdict(report)))
    begin_report(tmp_path, report.inputs)
    with pytest.raises(ValueError, match=r"--out=.* was begun with samples='a', not 'b': .* choose another folder"):
        begin_report(tmp_path, report.inputs | {"samples": "b"})
    with pytest.raises(ValueError, match=r"report\.json cannot be made \(.*\): choose another folder"):
        begin_report(tmp_path / "report.json", report.inputs)


@pytest.mark.parametrize(
    ("guidance", "scales", "powers"),
    [
        ("pow_cosine", [1, 1.5, 2, 2.5, 3], [0.5, 0.75, 1, 1.25, 1.5]),
        ("linear", [1, 1.5, 2, 2.5, 3], [1]),
        ("none", [2], [1]),
    ],
)
def test_only_what_counts_is_tried(given, guidance, scales, powers):
    options = Options(guidance=guidance, guidance_scale=2.0)
    given(guidance_scales=[], guidance_powers=[])
    assert evaluate._tried(evaluate._SCALES, [], 2.0, guidance != "none", options) == scales
    assert evaluate._tried(evaluate._POWERS, [], 1.0, guidance == "pow_cosine", options) == powers
    given(guidance_powers=["3"])
    if guidance == "pow_cosine":
        assert evaluate._tried(evaluate._POWERS, [3.0], 1.0, True, options) == [3]
    else:
        with pytest.raises(ValueError, match=f"--guidance_powers=3 changes nothing with .*guidance={guidance}"):
            evaluate._tried(evaluate._POWERS, [3.0], 1.0, False, options)
