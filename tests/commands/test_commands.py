"""The commands as their users run them: what a mistake prints, and exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from safetensors.numpy import load_file, save_file

from rar_jax.checkpoints.weights import fingerprint, load_weights
from rar_jax.data.digits import DigitsTokenizer, digits_split
from rar_jax.data.pictures import center_square, read_picture
from rar_jax.evaluation.digits import digits_report
from rar_jax.evaluation.statistics import frechet_distance
from rar_jax.generate import load
from rar_jax.images.files import image_grid, write_png
from rar_jax.parallel.mesh import make_mesh
from rar_jax.sampling.options import Options
from rar_jax.sampling.sampler import Sampler, sample_tokens
from rar_jax.training import loop
from rar_jax.training.metrics import read_metrics
from rar_jax.training.run import prepare


def python(*arguments):
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def run(*arguments):
    return python("-m", *arguments)


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
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    result = run("rar_jax.main", f"--workdir={tmp_path / 'run'}", *arguments)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "run").exists()


def begin(program):
    """Starts a Python program and waits for its first line."""
    command = [sys.executable, "-c", f"import threading, time\nfrom rar_jax.commands import cli\n{program}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_one_line(number):
    main = """
def main(argv):
    try:
        with cli.user_errors():
            print("begun", flush=True)
            time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep({seconds})
cli.run(main)
"""
    process = begin(main.format(seconds=0))
    process.send_signal(number)
    assert process.wait(timeout=30) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert process.stderr.read() == f"error: stopped by {number.name}\n"
    # A second one does not wait for what the first began.
    process = begin(main.format(seconds=60))
    process.send_signal(number)
    assert process.stdout.readline() == "ending\n"
    process.send_signal(number)
    assert process.wait(timeout=30) == -number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_shuts_down_is_silent(number):
    """It waits for its threads after the command is done."""
    main = """
def wait():
    threading.main_thread().join()
    print("begun", flush=True)
    time.sleep(60)
cli.run(lambda argv: threading.Thread(target=wait).start())
"""
    process = begin(main)
    process.send_signal(number)
    assert process.wait(timeout=30) == -number and process.stderr.read() == ""


def test_train_then_sample(tmp_path):
    overrides = ["--config.model.width=16", "--config.model.depth=1", "--config.train.stop_step=2"]
    overrides += ["--config.eval.samples_per_class=0", "--config.eval.report_samples=0", "--config.eval.num_images=16"]
    overrides += ["--config.eval.score_every=0"]
    trained = run("rar_jax.main", "--config=configs/digits.py", f"--workdir={tmp_path}", *overrides)
    assert trained.returncode == 0, trained.stderr
    # A step's folder is of its run: what is drawn goes beside the run's own pictures, not into the checkpoint.
    step = tmp_path / "checkpoints" / "2"
    options = ["--classes=7,2", "--num=5", "--npz", "--seed=3", "--animate=gif"]
    sampled = run("rar_jax", "sample", f"--checkpoint={step}", *options)
    assert sampled.returncode == 0, sampled.stderr
    with np.load(tmp_path / "samples" / "samples.npz") as file:
        images = file["arr_0"]
        assert images.shape == (5, 8, 8, 3) and images.dtype == np.uint8
        assert file["arr_1"].tolist() == [7, 2, 7, 2, 7]
    # One class a row, with its name, in the order asked for; the second row is one image short.
    blank = np.full((1, 8, 8, 3), 255, np.uint8)
    grid = np.asarray(Image.open(tmp_path / "samples" / "grid.png"))
    shown = np.concatenate([images[0::2], images[1::2], blank])
    np.testing.assert_array_equal(grid, image_grid(shown, 3, ["7", "2"]))
    assert Image.open(tmp_path / "samples" / "animation.gif").n_frames > 2 and not (step / "samples").exists()
    wrong = run("rar_jax", "sample", f"--checkpoint={tmp_path}", "--classes=10")
    assert wrong.returncode == 2
    assert wrong.stderr.strip() == "error: class 10 is not in 0..9, the classes of this model"


def test_a_save_that_fails_is_a_line_and_not_the_tracebacks_of_its_threads(tmp_path):
    overrides = ["--config.model.width=128", "--config.model.depth=1", "--config.train.stop_step=2"]
    overrides += ["--config.eval.samples_per_class=0", "--config.eval.report_samples=0", "--config.eval.num_images=16"]
    overrides += ["--config.eval.score_every=0"]
    overrides += ["--config.checkpoint.every=1"]
    # The records of the digits are smaller, and the largest file of a checkpoint is not.
    full = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)); "
    full += "runpy.run_module('rar_jax.main', run_name='__main__', alter_sys=True)"
    trained = python("-c", full, "--config=configs/digits.py", f"--workdir={tmp_path}", *overrides)
    assert trained.returncode == 1
    lines = trained.stderr.splitlines()
    said = [line for line in lines if " failed: " in line]
    assert len(said) == 2 and all(
        "File too large" in line and line.endswith("older checkpoints stay: []") for line in said
    )
    assert lines[-1] == "error: step 2 could not be saved; there is no checkpoint yet"
    assert "Traceback" not in trained.stderr and not [
        line for line in lines if re.match("[EF]\\d{4}|Task |future:", line)
    ]


def test_images_to_records_to_a_run_and_back_to_pictures(scenes, vqgan_file, tmp_path):
    """From class folders of JPEGs to a trained model, as a user goes."""
    tokens, tokenizer = tmp_path / "tokens", [f"--tokenizer={vqgan_file}", "--image_size=16"]
    made = run(
        "rar_jax", "tokenize", f"--images={scenes}", f"--output={tokens}", "--crops=ten", "--workers=1", *tokenizer
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == f"{tokens}: 96 images of 2 classes, 10 crops an image, 64 codes of 24"
    drawn = run("rar_jax", "tokenize", f"--decode={tokens}", f"--output={tmp_path / 'decoded.png'}", *tokenizer)
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
    # Six steps an epoch, of the 96 images and not of their 960 crops.
    assert "(6 an epoch)" in trained.stderr
    assert (tmp_path / "run" / "samples" / "step_00000007.png").exists()
    overrides[2] = "--config.data.num_images=95"
    refused = run("rar_jax.main", "--config=configs/rar_b.py", f"--workdir={tmp_path / 'other'}", *overrides)
    assert refused.returncode == 2 and "num_images=95" in refused.stderr and "holds 96" in refused.stderr


def test_reconstructions_are_drawn_below_their_images(scenes, vqgan_file, tmp_path):
    picture = tmp_path / "grid.png"
    options = [f"--images={scenes}", f"--tokenizer={vqgan_file}", "--image_size=64", "--num=10", "--workers=1"]
    drawn = run("rar_jax", "tokenize", "--reconstruct", f"--output={picture}", *options)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.startswith(f"{picture}: 10 images, below each its reconstruction (PSNR ")
    cells = np.asarray(Image.open(picture))
    first = center_square(read_picture((scenes / "china" / "000_000.jpg").read_bytes()), 64)
    np.testing.assert_array_equal(cells[2:66, 2:66], first)
    # Two rows of images with theirs below; the second has two.
    assert cells.shape == (4 * 66 + 2, 8 * 66 + 2, 3)
    assert (cells[2 * 66 + 2 :, 2 * 66 + 2 :] == 255).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one of --images, --tfds, --jsonl and --decode; given: none"),
        (["--images=a", "--jsonl=b"], "given: images, jsonl"),
        (["--images=nothing"], "name what to write with --output"),
        (["--images=nothing", "--output=out", "--tokenizer=w.bin"], "no images in 'nothing'"),
        (["--images=tests", "--output=out"], "name the weights that make the tokens"),
        (["--jsonl=nothing.jsonl", "--output=out"], "--jsonl=nothing.jsonl: there is no such file"),
        (["--decode=nothing", "--output=out", "--tokenizer=digits"], "--output=out must be a .png file"),
        (
            ["--images=tests", "--output=out", "--crops=ten", "--flip", "--tokenizer=digits"],
            "--crops=ten has the mirrors already",
        ),
        (["--images=tests", "--output=setup.py", "--tokenizer=digits"], "setup.py is a file, not a folder"),
        (["--images=tests", "--output=out", "--crops=five"], "crops"),
        (
            ["--reconstruct", "--jsonl=a", "--output=a.png", "--tokenizer=digits"],
            "--reconstruct goes with --images or --tfds",
        ),
        (["--images=tests", "--output=out", "--tokenizer=digits", "--process_count=2"], "go together"),
        (
            ["--jsonl=a", "--output=out", "--process_count=2", "--process_index=1"],
            "--process_index goes with --images or --tfds",
        ),
        (
            ["--images=tests", "--output=out", "--tokenizer=digits", "--split=train"],
            "--split goes with --tfds, not with --images: leave it out",
        ),
        (["--jsonl=a", "--output=out", "--noflip"], "--flip goes with --images or --tfds, not with --jsonl"),
        (
            ["--tfds=mnist", "--output=out", "--tokenizer=digits", "--num=3"],
            "--num goes with --reconstruct or --decode",
        ),
    ],
)
def test_mistakes_with_tokenize(arguments, message):
    result = run("rar_jax", "tokenize", *arguments)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line
    assert not (ROOT / "out").exists()


def test_published_weights_in_and_out(golden, vqgan_file, tmp_path):
    """A file to a folder, pictures from either, and back to a file."""
    published = tmp_path / "rar.safetensors"
    save_file(golden.tensors("params/"), published)
    heads = golden.config["heads"]
    for file, flag, message in (
        (published, heads + 1, f"--num_heads={heads + 1}, but the tensors of {published} have {heads} heads: leave"),
        (vqgan_file, heads, f"--num_heads={heads} is of a RAR, and {vqgan_file} holds vqgan weights: leave it out"),
    ):
        refused = run("rar_jax", "convert", f"--input={file}", f"--output={tmp_path / 'rar'}", f"--num_heads={flag}")
        assert refused.returncode == 2 and message in refused.stderr and not (tmp_path / "rar").exists()
    given = f"--num_heads={heads}"
    converted = run("rar_jax", "convert", f"--input={published}", f"--output={tmp_path / 'rar'}", given)
    assert converted.returncode == 0, converted.stderr
    tokenizer = run("rar_jax", "convert", f"--input={vqgan_file}", f"--output={tmp_path / 'vqgan'}")
    assert tokenizer.returncode == 0 and tokenizer.stdout.strip().endswith("vqgan weights")
    back = run("rar_jax", "convert", f"--input={tmp_path / 'rar'}", f"--output={tmp_path / 'back.safetensors'}")
    assert back.returncode == 0, back.stderr
    tensors = load_file(tmp_path / "back.safetensors")
    for name, tensor in golden.tensors("params/").items():
        assert tensors[name].tobytes() == tensor.tobytes()
    sources = {"of_file": (published, vqgan_file), "of_folder": (tmp_path / "rar", tmp_path / "vqgan")}
    for name, (checkpoint, weights) in sources.items():
        options = ["--num=4", "--classes=1,2", f"--out={tmp_path / name}", "--npz"]
        sampled = run("rar_jax", "sample", f"--checkpoint={checkpoint}", f"--tokenizer={weights}", *options)
        assert sampled.returncode == 0, sampled.stderr
    of_file, of_folder = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("of_file", "of_folder"))
    assert of_file.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(of_file, of_folder)
    again = run("rar_jax", "convert", f"--input={published}", f"--output={tmp_path / 'rar'}")
    assert again.returncode == 2 and "is there already" in again.stderr
    other = run("rar_jax", "sample", f"--checkpoint={vqgan_file}", f"--tokenizer={vqgan_file}")
    assert other.returncode == 2 and "rar weights are needed" in other.stderr


def test_inception_weights_in_and_out(inception_tensors, tmp_path):
    save_file(inception_tensors, tmp_path / "published.safetensors")
    back = tmp_path / "back.safetensors"
    converted = run("rar_jax", "convert", f"--input={tmp_path / 'published.safetensors'}", f"--output={back}")
    assert converted.returncode == 0 and converted.stdout.strip().endswith("inception weights")
    tensors = load_file(back)
    assert tensors.keys() == inception_tensors.keys()
    assert all(tensors[name].tobytes() == tensor.tobytes() for name, tensor in inception_tensors.items())


@pytest.mark.long
def test_benchmark_data(tmp_path):
    small = ["--records=60000", "--lines=1000", f"--json={tmp_path / 'data.json'}"]
    measured = run("rar_jax", "benchmark", "data", *small)
    assert measured.returncode == 0, measured.stderr
    results = json.loads((tmp_path / "data.json").read_text())
    assert results["loader, 60,000 records"]["records/s, median"] > 0
    assert results["JSONL import, 1,000 lines"]["lines"] == 1000
    assert run("rar_jax", "benchmark", "dta").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name an experiment with --config"),
        (["--config=configs/digits.py", "--batch_size=a"], "--batch_size=a must be numbers, such as 1,8"),
        (["--config=configs/digits.py", "--batch_size=0"], "--batch_size=0: 0 must be a multiple of the 1 devices"),
    ],
)
def test_mistakes_with_benchmark_sample(arguments, message):
    result = run("rar_jax", "benchmark", "sample", *arguments)
    assert result.returncode == 2 and message in result.stderr


@pytest.mark.long
def test_benchmark_sample(tmp_path):
    options = ["--batch_size=2,3", "--repeats=1", f"--json={tmp_path / 'sample.json'}"]
    measured = run("rar_jax", "benchmark", "sample", "--config=configs/digits.py", *options)
    assert measured.returncode == 0, measured.stderr
    results = json.loads((tmp_path / "sample.json").read_text())
    for batch in (2, 3):
        section = results[f"sampling, digits, batch {batch}"]
        assert section["images/s"] == pytest.approx(batch / section["decode, s, median"])
        # Nothing is faster than its floor.
        assert 0 < section["floor / time"] < 1


@pytest.mark.long
def test_the_digits_run_learns_the_digits(tmp_path):
    """The whole of configs/digits.py: its report against the figures in the README, with room for other processors."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "rar_jax.main", "--config=configs/digits.py", f"--workdir={tmp_path}"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=900)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["target_loss"] < 1.30 < report["random_loss"]
    assert report["svm_accuracy_samples"] > 0.98
    assert report["frechet_samples"] < 4 * report["frechet_train"]
    evaluated = [entry for entry in read_metrics(tmp_path) if "heldout/target_loss" in entry]
    check_greedy_decodes_agree(tmp_path)
    # While r is 1 both orders are as hard; once it is 0 the target order is the easier one.
    assert abs(evaluated[0]["heldout/target_loss"] - evaluated[0]["heldout/random_loss"]) < 0.03
    assert evaluated[-1]["heldout/random_loss"] - evaluated[-1]["heldout/target_loss"] > 0.3


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
    scored = run("rar_jax", "evaluate", f"--samples={heldout}", f"--reference={train}", *options)
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
    # A report of the same is replaced; one of something else is not, and that is said before the work.
    same = run("rar_jax", "evaluate", f"--samples={heldout}", f"--reference={train}", *options)
    assert same.returncode == 0, same.stderr
    other = run("rar_jax", "evaluate", f"--samples={train}", f"--reference={heldout}", *options)
    assert other.returncode == 2 and f"--out={tmp_path} was begun with samples=" in other.stderr
    assert "features of" not in other.stderr
    assert json.loads((tmp_path / "report.json").read_text()) == report
    # Statistics saved and used give the same distance.
    saved = run(
        "rar_jax", "evaluate", f"--samples={train}", "--features=pixels", f"--save_statistics={tmp_path / 's.npz'}"
    )
    assert saved.returncode == 0, saved.stderr
    options[-1] = f"--out={tmp_path / 'stored'}"
    again = run("rar_jax", "evaluate", f"--samples={heldout}", f"--reference={tmp_path / 's.npz'}", *options)
    assert again.returncode == 0, again.stderr
    stored = json.loads((tmp_path / "stored" / "report.json").read_text())
    assert stored["scores"] == {"frechet_pixels": pytest.approx(report["scores"]["frechet_pixels"], rel=1e-9)}
    assert "no precision and recall: the reference has no images" in stored["warnings"]


def test_a_tokenizer_is_scored(scenes, vqgan_file, tmp_path):
    options = ["--reconstruction", f"--images={scenes}", f"--tokenizer={vqgan_file}", "--image_size=16", "--num=20"]
    scored = run("rar_jax", "evaluate", *options, "--features=pixels", f"--out={tmp_path}")
    assert scored.returncode == 0, scored.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    names = ["frechet_pixels", "psnr", "ssim", "codebook_use", "codebook_perplexity"]
    assert list(report["scores"]) == names and (tmp_path / "report.png").exists()


def test_a_model_is_tuned_and_runs_are_compared(digit_files, small_config, tmp_path):
    folder = tmp_path / "run"
    loop.train(prepare(small_config(train={"stop_step": 2, "log_every": 1}, checkpoint={"every": 2}), folder))
    options = ["--tune", f"--checkpoint={folder}", f"--reference={digit_files / 'train.npz'}", "--features=pixels"]
    options += ["--num=20", "--guidance_scales=1,2", "--guidance_powers=1", f"--out={tmp_path / 'tuned'}"]
    tuned = run("rar_jax", "evaluate", *options)
    assert tuned.returncode == 0, tuned.stderr
    lines = [json.loads(line) for line in (tmp_path / "tuned" / "tuning.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    # Whatever the scores stand on.
    assert lines[0] == {
        "model": f"digits-{fingerprint(load(folder).sampler.params)}", "step": 2, "tokenizer": "digits",
        "images": 20, "seed": 0, "scan_order": "row_major", "guidance": "pow_cosine", "top_k": 0, "top_p": 1.0,
        "reference": str(digit_files / "train.npz"), "features": "pixels",
    }  # fmt: skip
    images = load(folder).generate(np.arange(20) % 10, guidance_scale=2.0, guidance_power=1.0)
    expected = frechet_distance(*(DigitsTokenizer().encode(part) for part in (images, digits_split("train")[0])))
    assert lines[2]["guidance_scale"] == 2 and lines[2]["frechet_pixels"] == pytest.approx(expected, rel=1e-6)
    best = min(lines[1:], key=lambda line: line["frechet_pixels"])
    flags = f"--guidance_scale={best['guidance_scale']:g} --guidance_power=1 --temperature=1"
    assert tuned.stdout.splitlines()[1].endswith(flags)
    assert (tmp_path / "tuned" / "tuning.png").exists()
    sampled = run("rar_jax", "sample", f"--checkpoint={folder}", "--num=2", f"--out={tmp_path / 's'}", *flags.split())
    assert sampled.returncode == 0, sampled.stderr
    shutil.copytree(folder, tmp_path / "other")
    drawn = run("rar_jax", "evaluate", f"--curves={folder},{tmp_path / 'other'}")
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.splitlines()[0] == f"{folder}: the same config"
    assert (tmp_path / "evaluation" / "curves" / "curves.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one of --samples, --reconstruction, --tune, --curves; given: none"),
        (["--samples=a.npz", "--tune"], "given: samples, tune"),
        (["--samples=a.npz"], "name what to score against with --reference, or where to save statistics"),
        (["--samples=a.npz", "--reference=b.npz", "--seed=1"], "--seed goes with --tune, not with --samples"),
        (["--samples=a.npz", "--reference=b.npz"], "a.npz: there is no such file"),
        (["--samples=tests/data/rar_tiny.npz", "--reference=b.npz"], "has no arr_0, which must hold the images"),
        (["--samples=setup.py", "--reference=b.npz"], "it must be a folder or an .npz"),
        (["--reconstruction", "--images=tests"], "--reconstruction needs --images=FOLDER and --tokenizer=WEIGHTS"),
        (["--samples=a.npz", "--save_statistics=b.txt"], "--save_statistics=b.txt must be an .npz file"),
        (
            ["--tune", "--checkpoint=nothing", "--reference=b.npz", "--temperatures=a"],
            "--temperatures=a must be numbers",
        ),
        (["--tune", "--checkpoint=nothing", "--reference=b.npz", "--features=pixels"], "b.npz: there is no such file"),
        (["--tune", "--checkpoint=nothing", "--reference=b.npz", "--seed=4294967296"], "--seed=4294967296"),
        (["--tune", "--checkpoint=nothing"], "--tune needs --checkpoint=RUN and --reference"),
        (
            ["--tune", "--checkpoint=nothing", "--reference=tests/tiny", "--guidance_powers=0"],
            "powers: 0 must be above",
        ),
        (["--curves=tests"], "no run in 'tests'"),
    ],
)
def test_mistakes_with_evaluate(arguments, message):
    result = run("rar_jax", "evaluate", *arguments)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.long
def test_benchmark_evaluate(tmp_path):
    small = ["--batches=2", "--samples=300", "--references=200", f"--json={tmp_path / 'evaluate.json'}"]
    measured = run("rar_jax", "benchmark", "evaluate", *small)
    assert measured.returncode == 0, measured.stderr
    results = json.loads((tmp_path / "evaluate.json").read_text())
    assert results["Inception features, 256 x 256"]["GFLOP an image"] == pytest.approx(11.4, abs=0.1)
    assert results["precision and recall"]["samples"] == 300


def check_greedy_decodes_agree(folder):
    """The likeliest digits of a trained model are the same at batch 1, 3 and 8, and on one device and eight."""
    weights, labels = load_weights(folder, "rar"), np.arange(8)
    # On the host, from where each mesh takes them.
    params = jax.tree.map(np.asarray, weights.params)
    options = Options(guidance_scale=2.0, guidance_power=2.0, temperature=0)
    one, eight = make_mesh((1, 1), jax.devices()[:1]), make_mesh((8, 1))
    decoded = [
        sample_tokens(Sampler(weights.model, params, mesh), labels, options, seed=0, batch_size=batch_size)
        for mesh, batch_size in ((one, 1), (one, 3), (one, 8), (eight, 8))
    ]
    for other in decoded[1:]:
        np.testing.assert_array_equal(decoded[0], other)
