import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT
from running import python, refusal, run

from rar_jax.checkpoints.weights import load_weights
from rar_jax.parallel.mesh import make_mesh
from rar_jax.sampling.options import Options
from rar_jax.sampling.sampler import Sampler, sample_tokens
from rar_jax.training.metrics import read_metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/digits.py", "--config.train.bacth_size=3"],
            "no field 'train.bacth_size'; nearest: train.batch_size",
        ),
        (["--config=configs/digits.py", "--config.train.batch_size=many"], "batch_size"),
        (["--config=configs/digits.py", "--config.model.width=65"], "must be divisible by config.model.num_heads"),
        (["--config=configs/rar_b.py"], "config.data.path is empty"),
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        ([], "name an experiment with --config"),
    ],
)
def test_mistakes_with_train(arguments, message, tmp_path):
    assert message in refusal("train", f"--workdir={tmp_path / 'run'}", *arguments)
    assert not (tmp_path / "run").exists()


def test_a_failed_save_is_one_line_without_tracebacks(tmp_path):
    overrides = ["--config.model.width=128", "--config.model.depth=1", "--config.train.stop_step=2"]
    overrides += ["--config.eval.samples_per_class=0", "--config.eval.report_samples=0", "--config.eval.num_images=16"]
    overrides += ["--config.eval.score_every=0"]
    overrides += ["--config.checkpoint.every=1"]
    # This limit lets the records of the digits be written, but not the largest file of a checkpoint.
    full = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)); "
    full += "runpy.run_module('rar_jax.main', run_name='__main__', alter_sys=True)"
    trained = python("-c", full, "--config=configs/digits.py", f"--workdir={tmp_path}", *overrides)
    assert trained.returncode == 1
    lines = trained.stderr.splitlines()
    failures = [line for line in lines if " failed: " in line]
    assert len(failures) == 2 and all(
        "File too large" in line and line.endswith("older checkpoints stay: []") for line in failures
    )
    assert lines[-1] == "error: step 2 could not be saved; there is no checkpoint yet"
    assert "Traceback" not in trained.stderr and not [
        line for line in lines if re.match("[EF]\\d{4}|Task |future:", line)
    ]


def test_images_are_tokenized_drawn_and_trained_on(scenes, vqgan_file, tmp_path):
    """Runs the commands by which a user gets from class folders of JPEGs to a trained model."""
    tokens, tokenizer = tmp_path / "tokens", [f"--tokenizer={vqgan_file}", "--image_size=16"]
    made = run(
        "rar_jax", "tokenize", f"--images={scenes}", f"--output={tokens}", "--crops=ten", "--workers=1", *tokenizer
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == f"{tokens}: 96 images of 2 classes, 10 crops per image, 64 tokens of 24 codes"
    drawn = run("rar_jax", "show_records", f"--records={tokens}", f"--output={tmp_path / 'decoded.png'}", *tokenizer)
    assert drawn.returncode == 0, drawn.stderr
    assert [line.split(", ") for line in drawn.stdout.splitlines()[1:]] == [["  china"] + ["china"] * 7] * 2 + [
        ["  flower"] + ["flower"] * 7
    ] * 2
    overrides = [f"--config.data.path={tokens}", f"--config.data.tokenizer={vqgan_file}", "--config.data.num_images=96"]
    overrides += ["--config.data.image_size=16", "--config.data.downsampling=2", "--config.model.grid_side=8"]
    overrides += ["--config.model.codebook_size=24", "--config.model.num_classes=2", "--config.model.depth=1"]
    overrides += ["--config.model.width=32", "--config.model.mlp_width=32", "--config.train.batch_size=16"]
    overrides += ["--config.train.dtype=float32", "--config.eval.samples_per_class=2", "--config.train.stop_step=7"]
    trained = run("rar_jax.main", "--config=configs/rar_b.py", f"--workdir={tmp_path / 'run'}", *overrides)
    assert trained.returncode == 0, trained.stderr
    # An epoch has 96 images, not their 960 crops, in six steps.
    assert "(6 per epoch)" in trained.stderr
    assert (tmp_path / "run" / "samples" / "step_00000007.png").exists()
    overrides[2] = "--config.data.num_images=95"
    refused = run("rar_jax.main", "--config=configs/rar_b.py", f"--workdir={tmp_path / 'other'}", *overrides)
    assert refused.returncode == 2 and "num_images=95" in refused.stderr and "holds 96" in refused.stderr


@pytest.mark.long
def test_the_digits_run_learns_the_digits(tmp_path):
    """A full run of configs/digits.py reaches the figures in the README, with a margin for other processors."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "rar_jax.main", "--config=configs/digits.py", f"--workdir={tmp_path}"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=900)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["target_loss"] < 1.26 < report["random_loss"]
    assert report["svm_accuracy_samples"] > 0.98
    assert report["frechet_samples"] < 4 * report["frechet_train"]
    evaluated = [entry for entry in read_metrics(tmp_path) if "heldout/target_loss" in entry]
    check_greedy_decodes_agree(tmp_path)
    # While r is large, both orders are about equally hard. Once r is 0, the target order is easier.
    assert abs(evaluated[0]["heldout/target_loss"] - evaluated[0]["heldout/random_loss"]) < 0.1
    assert evaluated[-1]["heldout/random_loss"] - evaluated[-1]["heldout/target_loss"] > 0.3


def check_greedy_decodes_agree(folder):
    """Checks that greedy decoding gives the same tokens at batch 1, 3 and 8, and on one device and on eight."""
    weights, labels = load_weights(folder, "rar"), np.arange(8)
    # Each mesh takes the parameters from the host.
    params = jax.tree.map(np.asarray, weights.params)
    options = Options(guidance_scale=2.0, guidance_power=2.0, temperature=0)
    one, eight = make_mesh((1, 1), jax.devices()[:1]), make_mesh((8, 1))
    decoded = [
        sample_tokens(Sampler(weights.model, params, mesh), labels, options, seed=0, batch_size=batch_size)
        for mesh, batch_size in ((one, 1), (one, 3), (one, 8), (eight, 8))
    ]
    for other in decoded[1:]:
        np.testing.assert_array_equal(decoded[0], other)
