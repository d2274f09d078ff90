import dataclasses
import json

import jax
import numpy as np
import pytest
from running import call
from safetensors.numpy import load_file

from rar_jax.checkpoints.weights import load_weights
from rar_jax.data.pictures import center_square
from rar_jax.data.tokenizers import VQGANTokenizer, open_tokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.reconstruction import psnr
from rar_jax.images.files import write_png
from rar_jax.parallel.mesh import make_mesh
from rar_jax.run_folder import read_config
from rar_jax.tokenizer_config import TokenizerConfig
from rar_jax.tokenizer_training import run as run_module
from rar_jax.tokenizer_training.quantizers import kmeans_codebook
from rar_jax.tokenizer_training.run import prepare
from rar_jax.training import loop
from rar_jax.training.metrics import read_metrics
from rar_jax.training.preemption import Preemption


class AskedAt(Preemption):
    """Asks the run to end after a number of steps."""

    def __init__(self, steps):
        super().__init__()
        self._left = steps

    def asked(self):
        self._left -= 1
        return self._left == 0


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 256, (3, 4, 3)).repeat(4, axis=0).repeat(4, axis=1)
        write_png(folder / f"{i}.png", pixels.astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def config(tiny_tokenizer, folder_of_images):
    return tiny_tokenizer(data={"images": str(folder_of_images), "holdout": 0.25})


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert loop.train(prepare(config, folder))
    return folder


def weights(folder):
    return jax.tree.map(np.asarray, load_weights(folder, "vqgan").params)


def test_a_run_leaves_everything_in_its_folder(whole):
    for name in ("config.json", "metrics.jsonl", "speed.jsonl", "figures/curves.png", "checkpoints/12"):
        assert (whole / name).exists(), name
    assert {path.name for path in (whole / "reconstructions").iterdir()} == {
        "step_00000006.png",
        "step_00000012.png",
    }
    entries = read_metrics(whole)
    assert [entry["step"] for entry in entries if "train/loss" in entry] == [4, 8, 12]
    (last,) = [entry for entry in entries if "heldout/psnr" in entry and entry["step"] == 12]
    assert {"heldout/psnr", "heldout/codebook_use", "heldout/codebook_perplexity"} <= last.keys()
    assert last["heldout/psnr"] > 5


def test_a_run_must_lie_outside_its_images(config, folder_of_images):
    with pytest.raises(UserError, match=r"--workdir=.*run lies in the images' folder"):
        prepare(config, folder_of_images / "run")
    assert not (folder_of_images / "run").exists()


def test_a_preempted_run_resumes_without_a_difference(config, whole, tmp_path):
    """The folder, the weights and the metrics are those of the undisturbed run, bit for bit."""
    assert not loop.train(prepare(config, tmp_path), AskedAt(7))
    assert loop.train(prepare(config, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, weights(tmp_path), weights(whole))
    assert read_metrics(tmp_path) == read_metrics(whole)


def test_one_device_trains_as_eight_do(config, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "data_mesh", lambda field, size: make_mesh((1,), jax.devices()[:1]))
    assert loop.train(prepare(config, tmp_path))
    expected, found = read_metrics(whole), read_metrics(tmp_path)
    assert [entry["step"] for entry in found] == [entry["step"] for entry in expected]
    for ours, theirs in zip(found, expected, strict=True):
        if "train/loss" in theirs:
            assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-3)


def test_the_folder_is_a_tokenizer_and_its_published_form_gives_the_same_images(whole, tmp_path):
    """The run's folder, a converted folder and a file with the published names decode to the same images."""
    run = prepare(read_config(whole, TokenizerConfig), whole)
    state, _ = run.begin()
    run.close()
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    # By the same program as below: another one can round values halfway between two levels differently.
    averaged = VQGANTokenizer(run.program.settings.model, state.ema, 8)
    expected = averaged.decode(averaged.encode(images))
    file, folder = tmp_path / "tokenizer.safetensors", tmp_path / "converted"
    for source, target in ((whole, file), (file, folder)):
        converted = call("convert", f"--input={source}", f"--output={target}")
        assert converted.returncode == 0, converted.stderr
    assert "encoder.down.1.block.0.conv1.weight" in load_file(file)
    fingerprints = {averaged.fingerprint}
    for named in (whole, whole / "checkpoints" / "12", file, folder):
        tokenizer = open_tokenizer(str(named), 8)
        fingerprints.add(tokenizer.fingerprint)
        np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode(images)), expected)
    assert len(fingerprints) == 1


def test_the_scores_are_those_of_the_tokenizer(config, whole, tmp_path):
    run = prepare(config, tmp_path)
    run.close()
    heldout = np.stack([center_square(run.images.heldout[i], 8) for i in range(len(run.images.heldout))])
    tokenizer = open_tokenizer(str(whole), 8)
    codes = tokenizer.encode(heldout)
    (last,) = [entry for entry in read_metrics(whole) if "heldout/psnr" in entry and entry["step"] == 12]
    assert last["heldout/psnr"] == pytest.approx(psnr(heldout, tokenizer.decode(codes)).mean(), rel=1e-4)
    assert last["heldout/codebook_use"] == len(np.unique(codes)) / 16
    # The second batch of 8 images is padded, and the padding is not scored.
    assert len(heldout) == 10 and len(run.images.train) == 30


def test_a_run_starts_from_weights_and_its_new_codes_from_clusters(config, whole, tmp_path, caplog):
    caplog.set_level("INFO", "rar_jax")
    model = dataclasses.replace(config.model, codebook_size=9)
    quantizer = dataclasses.replace(config.quantizer, kind="vq")
    config = dataclasses.replace(config, model=model, quantizer=quantizer, init_from=str(whole))
    run = prepare(config, tmp_path)
    state, _ = run.begin()
    run.close()
    assert any("reinitialised: quantize/embedding" in record.getMessage() for record in caplog.records)
    given = weights(whole)
    np.testing.assert_array_equal(state.ema["encoder"]["conv_in"]["kernel"], given["encoder"]["conv_in"]["kernel"])
    # The clusters are those of at least 16 latents for each of the 9 codes, which two training batches have.
    batches = run.batches(None)._batches.source
    images = np.concatenate([batches[number]["image"] for number in range(2)]).astype(np.float32) / 255
    latents = run.program.settings.model.apply({"params": given}, images, method=lambda vqgan, x: vqgan.encoder(x))
    expected = kmeans_codebook(np.asarray(latents).reshape(-1, 2), 9, config.seed)
    np.testing.assert_allclose(state.params["quantize"]["embedding"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("data", {"images": "nowhere"}, "files in 'nowhere'"),
        ("data", {"holdout": 0.001}, r"holdout=0.001 holds out none of the \d+ images of .*: set a larger fraction"),
        ("train", {"batch_size": 64}, "batch_size=64 is more than the 30 training images"),
        ("train", {"batch_size": 12}, "batch_size=12 must be divisible by the 8 devices"),
        ("data", {"name": "glyphs", "images": ""}, "image_size=8 must be 32"),
    ],
)
def test_mistakes_are_found_before_training(config, tmp_path, section, change, message):
    changed = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **change)})
    with pytest.raises(UserError, match=message):
        prepare(changed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_kind_or_method_is_not_resumed(config, whole, small_config, tmp_path):
    changed = dataclasses.replace(config, quantizer=dataclasses.replace(config.quantizer, commitment=0.5))
    with pytest.raises(UserError, match=r"quantizer\.commitment=0\.25, not 0\.5"):
        prepare(changed, whole)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "rar"}))
    with pytest.raises(UserError, match="holds a rar, not a vqgan"):
        prepare(config, tmp_path)
