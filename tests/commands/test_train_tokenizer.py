import json

import pytest
from running import call, refusal, run

from rar_jax.checkpoints.weights import load_weights


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a tokenizer with --config=configs/tokenizers/NAME.py"),
        (["--config=configs/tokenizers/f16.py"], "config.data.images is empty: name the images with --images=DIR"),
        (["--config=configs/tokenizers/f16.py", "--images=nowhere"], "in 'nowhere'"),
        (
            ["--config=configs/tokenizers/glyphs.py", "--inception=nowhere.pth"],
            "config.inception=nowhere.pth: no weights",
        ),
        (
            ["--config=configs/tokenizers/glyphs.py", "--config.init_from=nowhere"],
            "config.init_from=nowhere: no weights",
        ),
        (
            ["--config=configs/tokenizers/glyphs.py", "--config.quantizer.comitment=1"],
            "no field 'quantizer.comitment'; nearest: quantizer.commitment",
        ),
        (["--config=configs/digits.py", "--images=folder"], "config has no field 'mesh'"),
    ],
)
def test_mistakes_with_train_tokenizer(arguments, message, tmp_path):
    assert message in refusal("train_tokenizer", f"--workdir={tmp_path / 'run'}", *arguments)
    assert not (tmp_path / "run").exists()


def test_the_command_trains_a_tokenizer_that_tokenizes(scenes, tmp_path):
    """Worker processes decode the images. The rFID network is not given, so that it is not measured."""
    folder = tmp_path / "run"
    options = ["--config=configs/tokenizers/f16.py", f"--images={scenes}", f"--workdir={folder}"]
    options += ["--config.model.width=8", "--config.model.multipliers=(1,1)", "--config.model.num_blocks=1"]
    options += ["--config.data.image_size=16", "--config.data.workers=1", "--config.data.holdout=0.1"]
    options += ["--config.train.batch_size=8", "--config.train.stop_step=3", "--config.loss.adversarial=0"]
    trained = run("rar_jax", "train_tokenizer", *options)
    assert trained.returncode == 0, trained.stderr
    assert "(10 per epoch)" in trained.stderr
    config = json.loads((folder / "config.json").read_text())
    assert config["kind"] == "vqgan" and config["model"]["multipliers"] == [1, 1]
    assert load_weights(folder).model.config.groups == 0
    made = call(
        "reconstruct",
        f"--images={scenes}",
        f"--tokenizer={folder}",
        "--image_size=16",
        f"--output={tmp_path / 'a.png'}",
    )
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "a.png").exists()
