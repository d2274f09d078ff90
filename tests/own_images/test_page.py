"""The page of a run whose files are made up."""

import html.parser
import json
import os

import numpy as np
import pytest

from rar_jax.data.records import Description, write_records
from rar_jax.errors import UserError
from rar_jax.own_images.html import Picture, Section, render
from rar_jax.own_images.page import write_page
from rar_jax.run_folder import write_config

NAMES = ("a<b", "cats & dogs", *(f"class {i}" for i in range(2, 17)), os.fsdecode(b"caf\xe9"))


class Page(html.parser.HTMLParser):
    """The tags, the texts and the pictures of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.pictures, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attributes))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(tmp_path, small_config):
    """A folder as launch/own_images.sh leaves it, with 18 classes."""
    for part, count in (("train", 40), ("heldout", 6)):
        codes = np.zeros((count, 4), np.uint16)
        described = Description(
            grid_side=2, codebook_size=16, class_names=NAMES, tokenizer="vqgan-0", source="pictures"
        )
        write_records(tmp_path / "tokens" / part, zip(codes, np.arange(count) % 18, strict=True), described)
    data = {"name": "records", "path": str(tmp_path / "tokens" / "train"), "tokenizer": "none", "num_images": 40}
    config = small_config(
        model={"num_classes": 18, "grid_side": 8}, data=data, train={"epochs": 9}, eval={"report_samples": 0}
    )
    write_config(tmp_path / "rar", config)
    (tmp_path / "rar.py").write_text("")
    (tmp_path / "plan.txt").write_text("RAR: small, because\nTraining: 9 epochs\n")
    for name, lines in (
        ("tokenizer", [{"step": 1, "heldout/psnr": 10.0}, {"step": 2, "heldout/psnr": 20.55}]),
        ("rar", [{"step": 5, "heldout/target_loss": 1.5, "train/target_loss": 1.25}]),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tokenizer" / "reconstructions").mkdir()
    for step in (1, 2):
        (tmp_path / "tokenizer" / "reconstructions" / f"step_{step:08d}.png").write_bytes(b"")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "job.json").write_text(json.dumps({"num": 36, "outputs": "npz"}))
    labels = np.arange(36) % 18
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (36, 8, 8, 3))
    np.savez(tmp_path / "samples" / "samples.npz", images, labels)
    nearest = {"scores": {"near_samples": 0.25}, "warnings": ["the model copies"], "inputs": {}}
    (tmp_path / "evaluation" / "nearest").mkdir(parents=True)
    (tmp_path / "evaluation" / "nearest" / "report.json").write_text(json.dumps(nearest))
    return tmp_path


def test_the_page_has_pictures_scores_and_commands(run):
    page = Page(write_page(run).read_text())
    assert page.open == [] and page.tags.count("h1") == page.tags.count("title") == 1
    assert "Generator of images: a<b, cats & dogs, class 2 and 15 more" in page.text
    assert "trained on 40 images of 18 classes, 8 x 8 pixels" in page.text and "6 more images are held out" in page.text
    files = [picture["src"] for picture in page.pictures]
    assert files == [
        "samples/classes_000.png",
        "samples/classes_001.png",
        "evaluation/nearest/report.png",
        "tokenizer/reconstructions/step_00000002.png",
        "tokenizer/figures/curves.png",
        "rar/figures/curves.png",
    ]
    assert all((run / file).exists() for file in files[:2]) and all(picture["alt"] for picture in page.pictures)
    for text in ("20.55", "1.500", "1.250", "25.0%", "Warning: the model copies.", "RAR: small, because"):
        assert text in page.text
    assert "Sample the class a<b, with" in page.text
    assert f"--checkpoint={run}/rar --classes=0 --num=16" in page.text
    assert f"tune --checkpoint={run}/rar --reference={run}/images/heldout --features=pixels" in page.text
    assert f"python -m rar_jax.main --config={run}/rar.py" in page.text
    assert "INCEPTION=WEIGHTS" in page.text
    # The name of a folder can hold any bytes.
    assert r"caf\udce9" in page.pictures[1]["alt"]


def test_the_page_asks_no_other_site_and_is_the_same_again(run):
    text = write_page(run).read_text()
    assert "http" not in text and "<script" not in text and 'name="viewport"' in text
    pictures = [file.read_bytes() for file in sorted((run / "samples").glob("*.png"))]
    assert write_page(run).read_text() == text
    assert [file.read_bytes() for file in sorted((run / "samples").glob("*.png"))] == pictures


def test_scores_of_samples_decide_the_features_of_tune(run):
    report = {"scores": {"fid": 12.3456}, "warnings": [], "inputs": {"features": "inception"}}
    (run / "evaluation" / "samples").mkdir()
    (run / "evaluation" / "samples" / "report.json").write_text(json.dumps(report))
    page = Page(write_page(run).read_text())
    assert "12.346" in page.text and "INCEPTION=WEIGHTS" not in page.text
    assert "--reference=" + f"{run}/images/heldout --inception=WEIGHTS --num=1000" in page.text
    assert "--inception=WEIGHTS --out=" + f"{run}/evaluation/inception" in page.text


def test_missing_samples_are_named(run):
    (run / "samples" / "samples.npz").unlink()
    with pytest.raises(UserError, match="samples has a job that is not complete"):
        write_page(run)


def test_texts_are_escaped():
    picture = Picture("a.png", 'a "quoted" <b>', "1 < 2")
    text = render("<t>", "&", [Section("<h>", ["<p>"], [("<a>", "<b>", "<c>")], [picture], [("<w>", "a > b")])])
    page = Page(text)
    assert page.pictures[0]["alt"] == 'a "quoted" <b>'
    assert {"t", "p>", "b"} & set(page.tags) == set()
    assert "<t>" in page.text and "a > b" in page.text
