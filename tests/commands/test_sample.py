import re

import numpy as np
import pytest
from PIL import Image
from running import call, refusal, run

from rar_jax.images.files import image_grid


def test_train_then_sample(tmp_path):
    overrides = ["--config.model.width=16", "--config.model.depth=1", "--config.train.stop_step=2"]
    overrides += ["--config.eval.samples_per_class=0", "--config.eval.report_samples=0", "--config.eval.num_images=16"]
    overrides += ["--config.eval.score_every=0"]
    trained = run("rar_jax.main", "--config=configs/digits.py", f"--workdir={tmp_path}", *overrides)
    assert trained.returncode == 0, trained.stderr
    # With the folder of a step, samples are written to the run's folder, not to the checkpoint.
    step = tmp_path / "checkpoints" / "2"
    options = ["--classes=7,2", "--num=5", "--npz", "--seed=3"]
    sampled = run("rar_jax", "sample", f"--checkpoint={step}", *options)
    assert sampled.returncode == 0, sampled.stderr
    with np.load(tmp_path / "samples" / "samples.npz") as file:
        images = file["arr_0"]
        assert images.shape == (5, 8, 8, 3) and images.dtype == np.uint8
        assert file["arr_1"].tolist() == [7, 2, 7, 2, 7]
    # Each row has one class with its name, in the requested order. The second row lacks one image.
    blank = np.full((1, 8, 8, 3), 255, np.uint8)
    grid = np.asarray(Image.open(tmp_path / "samples" / "grid.png"))
    shown = np.concatenate([images[0::2], images[1::2], blank])
    np.testing.assert_array_equal(grid, image_grid(shown, 3, ["7", "2"]))
    drawn = run("rar_jax", "animate", f"--checkpoint={step}", "--classes=7,2", "--seed=3", "--guidance=none")
    assert drawn.returncode == 0, drawn.stderr
    animation = tmp_path / "samples" / "animation.gif"
    assert drawn.stdout == f"{animation}: 4 images appear pass by pass, in the order row_major\n"
    assert Image.open(animation).n_frames > 2 and not (step / "samples").exists()
    verified = ["--steps=32", "--verify", "--guidance=none"]
    for outputs in ([], ["--npz"]):
        out = f"--out={tmp_path / f'verified{len(outputs)}'}"
        told = call("sample", f"--checkpoint={step}", *options[:2], out, *verified, *outputs)
        count = re.fullmatch(r"(\d\.\d\d) tokens per pass of the network", told.stdout.splitlines()[0])
        assert told.returncode == 0 and 1 <= float(count[1]) <= 2
    wrong = run("rar_jax", "sample", f"--checkpoint={tmp_path}", "--classes=10")
    assert wrong.returncode == 2
    assert wrong.stderr.strip() == "error: class 10 is not in 0..9, the classes of this model"


@pytest.mark.parametrize("command", ["sample", "animate"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a model with --checkpoint=RUN"),
        (["--checkpoint=nothing"], "no weights in 'nothing'"),
        (["--checkpoint=nothing", "--out=setup.py/samples"], "setup.py is a file, not a folder"),
        (["--checkpoint=nothing", "--scan_order=diagonal"], "scan_order"),
        (["--checkpoint=nothing", "--seed=4294967296"], "--seed=4294967296"),
    ],
)
def test_mistakes_with_samples(command, arguments, message):
    assert message in refusal(command, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--process_index=0"], "--process_index and --process_count must be given together"),
        (["--process_index=2", "--process_count=2", "--npz"], "--process_index=2 must be below --process_count=2"),
        (["--process_index=0", "--process_count=2"], "--process_count=2 needs a job to share: add --npz or --png"),
        (["--out=gs://bucket/a", "--npz"], "--out=gs://bucket/a: an .npz can only be written on a local file system"),
        (["--out=gs://bucket/a", "--num=513"], "gs://bucket/a: an .npz can only be written on a local file system"),
        (["--animate=gif"], "animate"),
    ],
)
def test_mistakes_with_jobs(arguments, message):
    assert message in refusal("sample", "--checkpoint=nothing", *arguments)
