import json
import re

import numpy as np
import pytest
from PIL import Image
from running import call, refusal

from rar_jax.data.digits import digits_split
from rar_jax.evaluation.digits import digits_report
from rar_jax.images.files import write_png


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory):
    """The held-out digits as class folders, the training digits as an .npz."""
    folder = tmp_path_factory.mktemp("digits")
    for i, (image, label) in enumerate(zip(*digits_split("heldout"), strict=True)):
        write_png(folder / "heldout" / str(label) / f"{i:03d}.png", image)
    images, labels = digits_split("train")
    np.savez(folder / "train.npz", arr_0=images, arr_1=labels)
    return folder


def test_images_are_scored(digit_files, tmp_path):
    train, heldout = digit_files / "train.npz", digit_files / "heldout"
    options = ["--features=pixels", "--reference_kind=training", f"--out={tmp_path}"]
    scored = call("evaluate", f"--samples={heldout}", f"--reference={train}", *options)
    assert scored.returncode == 0, scored.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    expected = digits_report(*digits_split("heldout"))["frechet_train"]
    assert report["scores"]["frechet_pixels"] == pytest.approx(expected, rel=1e-9)
    assert {"precision", "recall"} < report["scores"].keys() and "fid" not in report["scores"]
    assert report["facts"]["samples"]["images"] == 360 and report["facts"]["samples"]["size"] == "8 x 8 pixels"
    assert report["facts"]["reference"]["kind"] == "training images"
    assert re.search(r"Frechet distance of pixels, not FID +26\.", scored.stdout)
    assert (
        "warning: 360 samples, fewer than" in scored.stdout and "warning: the 10 classes have from 35" in scored.stdout
    )
    page = Image.open(tmp_path / "report.png")
    assert page.width > 1000 and np.asarray(page).std() > 30
    # A report of the same inputs is replaced. One of other inputs is refused before any features are computed.
    same = call("evaluate", f"--samples={heldout}", f"--reference={train}", *options)
    assert same.returncode == 0, same.stderr
    other = call("evaluate", f"--samples={train}", f"--reference={heldout}", *options)
    assert other.returncode == 2 and f"--out={tmp_path} was started with samples=" in other.stderr
    assert "features of" not in other.stderr
    assert json.loads((tmp_path / "report.json").read_text()) == report
    # Saved statistics give the same distance as the images.
    saved = call("evaluate", f"--samples={train}", "--features=pixels", f"--save_statistics={tmp_path / 's.npz'}")
    assert saved.returncode == 0, saved.stderr
    images = refusal("evaluate", f"--samples={train}", "--features=pixels", f"--save_statistics={train}")
    assert "train.npz exists and holds no statistics (arr_0)" in images
    options[-1] = f"--out={tmp_path / 'stored'}"
    again = call("evaluate", f"--samples={heldout}", f"--reference={tmp_path / 's.npz'}", *options)
    assert again.returncode == 0, again.stderr
    stored = json.loads((tmp_path / "stored" / "report.json").read_text())
    assert stored["scores"] == {"frechet_pixels": pytest.approx(report["scores"]["frechet_pixels"], rel=1e-9)}
    assert "no precision and recall: the reference has no images" in stored["warnings"]


PIXELS = ["--features=pixels"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the images to score with --samples"),
        (["--samples=a.npz", "--tune"], "'tune'"),
        (["--samples=a.npz"], "name what to score against with --reference, or a file for --save_statistics"),
        (["--samples=a.npz", "--reference=b.npz", "--seed=1"], "'seed'"),
        (["--samples=a.npz", "--reference=b.npz"], "needs the weights of the FID Inception network"),
        ([*PIXELS, "--samples=a.npz", "--reference=b.npz"], "no images in 'a.npz': there is no such file or folder"),
        (
            [*PIXELS, "--samples=tests/data/rar_tiny.npz", "--reference=b.npz"],
            "has no arr_0, which must hold the images",
        ),
        ([*PIXELS, "--samples=setup.py", "--reference=b.npz"], "it must be a folder or an .npz"),
        (["--samples=a.npz", "--reference=tests", "--out=tests/x"], "--out=tests/x lies in the images' folder tests"),
        (["--samples=a.npz", "--reference=b.npz", "--save_statistics=b.npz"], "would replace the reference"),
        (["--samples=a.npz", "--save_statistics=b.npz", "--out=x"], "--out has no effect with --save_statistics"),
        (["--samples=a.npz", "--save_statistics=b.txt"], "--save_statistics=b.txt must be an .npz file"),
    ],
)
def test_mistakes_with_evaluate(arguments, message):
    assert message in refusal("evaluate", *arguments)
