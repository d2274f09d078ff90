import dataclasses
import json
import os

import pytest

from rar_jax.errors import UserError
from rar_jax.evaluation.report import Report, begin_report, report_folder, write_report


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
def test_a_report_is_by_default_beside_the_files_that_were_scored(tmp_path, scored, folder):
    (tmp_path / "runs" / "anneal_0.5" / "checkpoints" / "12").mkdir(parents=True)
    above = tmp_path / "runs" if scored.startswith("runs") else tmp_path
    assert report_folder(str(tmp_path / scored)) == above / folder
    assert report_folder(str(tmp_path / scored), "curves") == above / "evaluation" / "curves"


def test_the_default_folder_for_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path / "images")
    assert report_folder(".") == tmp_path / "evaluation" / "images"


def test_scores_are_printed_even_if_they_cannot_be_written(tmp_path, capsys, monkeypatch):
    begin_report(tmp_path / "new", {"samples": "a"})
    report = Report("title", {"samples": "a"}, {}, {"fid": 2.5}, [])

    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr("rar_jax.evaluation.report.write_atomically", full)
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path / "new", report, [])
    assert "2.500" in capsys.readouterr().out


def test_names_that_are_not_utf_8(tmp_path, capsysbinary):
    name = os.fsdecode(b"caf\xe9.npz")
    begin_report(tmp_path, {})
    write_report(tmp_path, Report(name, {}, {"samples": {"path": name}}, {}, [f"{name} has few images"]), [])
    printed = capsysbinary.readouterr().out.decode()
    assert r"path caf\udce9.npz" in printed and r"warning: caf\udce9.npz has" in printed
    assert (tmp_path / "report.png").exists()


def test_a_report_of_other_inputs_is_not_replaced(tmp_path):
    report = Report("title", {"samples": "a", "image_size": None}, {}, {"fid": 2.5}, [])
    (tmp_path / "report.json").write_text(json.dumps(dataclasses.asdict(report)))
    begin_report(tmp_path, report.inputs)
    with pytest.raises(UserError, match=r"--out=.* was started with samples='a', not 'b': .* choose another folder"):
        begin_report(tmp_path, report.inputs | {"samples": "b"})
    with pytest.raises(UserError, match=r"report\.json cannot be created \(.*\): choose another folder"):
        begin_report(tmp_path / "report.json", report.inputs)
