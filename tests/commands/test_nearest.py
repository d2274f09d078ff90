import json

import numpy as np
from running import call, refusal


def test_samples_are_compared(vqgan_file, tmp_path):
    """Samples that are training images have a distance of 0."""
    images = np.random.default_rng(0).integers(256, size=(108, 8, 8, 3), dtype=np.uint8)
    for name, part in (("samples", images[:4]), ("training", images[:8]), ("heldout", images[8:])):
        np.savez(tmp_path / f"{name}.npz", part)
    sets = [f"--{name}={tmp_path / name}.npz" for name in ("samples", "training", "heldout")]
    done = call("nearest", *sets, f"--tokenizer={vqgan_file}", "--image_size=8")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "evaluation" / "nearest" / "report.json").read_text())
    assert report["scores"]["nearest_samples"] == 0 and report["scores"]["near_samples"] == 1
    assert "100% of the samples are nearer to a training image" in report["warnings"][0]


def test_mistakes():
    assert "--samples is missing" in refusal("nearest")
    assert "--heldout is missing" in refusal("nearest", "--samples=a.npz", "--training=b")
    assert "name the folder with --run=FOLDER" in refusal("page")
    assert "no run in 'nowhere/rar': it has no config.json" in refusal("page", "--run=nowhere")
