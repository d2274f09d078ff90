import json

import pytest
from running import refusal, run


def test_a_tokenizer_is_scored(scenes, vqgan_file, tmp_path):
    options = [f"--images={scenes}", f"--tokenizer={vqgan_file}", "--image_size=16", "--num=20"]
    scored = run("rar_jax", "evaluate_tokenizer", *options, "--features=pixels", f"--out={tmp_path}")
    assert scored.returncode == 0, scored.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    names = ["frechet_pixels", "psnr", "ssim", "codebook_use", "codebook_perplexity"]
    assert list(report["scores"]) == names and (tmp_path / "report.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images=tests"], "name images with --images=FOLDER and a tokenizer with --tokenizer=WEIGHTS"),
        (["--images=tests", "--tokenizer=digits", "--image_size=8"], "--image_size=8 must be at least 11"),
        (["--images=nothing", "--tokenizer=digits"], "no images in 'nothing'"),
    ],
)
def test_mistakes_with_evaluate_tokenizer(arguments, message):
    assert message in refusal("evaluate_tokenizer", *arguments)
