import runpy

import pytest
from running import call, refusal, run

from rar_jax.config import from_config_dict


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the images with --images=SPLIT"),
        (["--images=nowhere"], "the folder to write with --out"),
        (["--images=nowhere", "--out=runs/plan", "--hours=inf"], "--hours=inf must be a number above 0"),
        (["--images=nowhere", "--out=setup.py"], "--out=setup.py: setup.py is a file"),
        (["--images=nowhere", "--out=runs/plan"], "no images in 'nowhere/train': there is no such folder"),
    ],
)
def test_mistakes(arguments, message):
    assert message in refusal("plan", *arguments)


@pytest.mark.long
def test_the_machine_is_measured(scenes, tmp_path):
    split = tmp_path / "split"
    assert call("split_images", f"--images={scenes}", f"--output={split}").returncode == 0
    done = run(
        "rar_jax", "plan", f"--images={split}", "--image_size=32", "--hours=0.5", f"--out={tmp_path}", "--tokenizer="
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "plan.txt").read_text()
    assert done.stdout.startswith("86 training images and 10 held-out images of 2 classes, cut to 32 x 32 pixels.")
    rar = from_config_dict(runpy.run_path(str(tmp_path / "rar.py"))["get_config"]())
    assert rar.data.num_images == 86 and rar.model.width == 64
