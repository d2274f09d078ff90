import json

import numpy as np
import pytest
from running import call, refusal

from rar_jax.data.digits import digits_split
from rar_jax.data.glyphs import glyph_images
from rar_jax.evaluation import glyph_classifier


def test_a_tokenizer_is_scored(scenes, vqgan_file, tmp_path):
    options = [f"--images={scenes}", f"--tokenizer={vqgan_file}", "--image_size=16", "--num=20"]
    scored = call("evaluate_tokenizer", *options, "--features=pixels", f"--out={tmp_path}")
    assert scored.returncode == 0, scored.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    names = ["frechet_pixels", "psnr", "ssim", "codebook_use", "codebook_perplexity"]
    assert list(report["scores"]) == names and (tmp_path / "report.png").exists()


def test_images_below_the_window_of_ssim_have_no_ssim(tmp_path):
    np.savez(tmp_path / "digits.npz", arr_0=digits_split("heldout")[0])
    options = [f"--images={tmp_path / 'digits.npz'}", "--tokenizer=digits", "--image_size=8", "--features=pixels"]
    scored = call("evaluate_tokenizer", *options)
    assert scored.returncode == 0, scored.stderr
    scores = json.loads((tmp_path / "evaluation" / "digits" / "report.json").read_text())["scores"]
    assert scores["frechet_pixels"] < 1e-6 and "ssim" not in scores


class CornerClassifier:
    """Reads images by their first pixel, which stands for the features too."""

    def outputs(self, images):
        corner = images[:, 0, 0].astype(float)
        return corner, np.eye(36)[images[:, 0, 0, 0] % 36]


def test_reconstructions_of_glyphs_are_classified(vqgan_file, tmp_path, monkeypatch):
    monkeypatch.setattr(glyph_classifier, "glyph_classifier", CornerClassifier)
    options = ["--glyphs=24", "--image_size=32", "--features=glyphs"]
    scored = call("evaluate_tokenizer", *options, f"--tokenizer={vqgan_file}", f"--out={tmp_path}")
    assert scored.returncode == 0, scored.stderr
    scores = json.loads((tmp_path / "report.json").read_text())["scores"]
    images, labels = glyph_images("unseen_faces", np.arange(24))
    # The labels are digits, so that the classifier chooses among ten classes.
    read = CornerClassifier().outputs(images)[1][:, :10].argmax(axis=1)
    assert scores["glyph_accuracy_originals"] == np.mean(read == labels)
    assert scores["frechet_glyphs"] > 0 and 0 <= scores["glyph_accuracy"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one of --images, --glyphs; given: none"),
        (["--images=tests"], "name the tokenizer with --tokenizer=WEIGHTS"),
        (["--images=tests", "--tokenizer=digits", "--split=train"], "--split has no effect with --images: remove it"),
        (["--glyphs=9", "--tokenizer=digits"], "--image_size=256 would enlarge the glyphs: set --image_size=32"),
        (["--images=nothing", "--tokenizer=digits", "--image_size=8", "--features=pixels"], "no images in 'nothing'"),
    ],
)
def test_mistakes_with_evaluate_tokenizer(arguments, message):
    assert message in refusal("evaluate_tokenizer", *arguments)
