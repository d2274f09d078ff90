import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from running import call, refusal, write_run

from rar_jax.data import decoding, token_batches
from rar_jax.data.digits import digits_split
from rar_jax.data.records import TokenRecords
from rar_jax.generate import load

BATCH = 8


@pytest.fixture(scope="module")
def run(small_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("likelihood") / "run"
    write_run(folder, small_config(model={"depth": 1}))
    return folder


def check(out, stdout, generator, images, labels, orders):
    """Checks the results of a command against the Python API, which has all images at once."""
    found = generator.log_likelihood(images, labels, orders=orders)
    results = json.loads((out / "likelihood.json").read_text())
    assert (results["images"], results["orders"]) == (len(labels), orders)
    assert results["nats per image, mean over orders"] == pytest.approx(-found.mean.mean(), rel=1e-5)
    assert results["nats per token, mixture of orders"] == pytest.approx(-found.mixture.mean() / 64, rel=1e-5)
    assert re.search(rf"nats per token, mean over orders +{-found.mean.mean() / 64:.4f}\n", stdout)
    assert (out / "likelihood.png").exists()
    return results


def test_images_of_class_folders(run, tmp_path, monkeypatch):
    # Worker processes take seconds to start.
    decode = decoding._decode
    monkeypatch.setattr(
        token_batches, "decoded_squares", lambda examples, side: (decode([e], side)[0] for e in examples)
    )
    pixels, labels = digits_split("heldout")
    order = [i for label in (3, 7) for i in np.flatnonzero(labels == label)[: BATCH + 1]]
    for i in order:
        (tmp_path / "images" / str(labels[i])).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(tmp_path / "images" / str(labels[i]) / f"{i:04d}.png")
    out = tmp_path / "out"
    options = [f"--checkpoint={run}", f"--images={tmp_path / 'images'}", f"--out={out}", f"--batch_size={BATCH}"]
    result = call("likelihood", *options, "--orders=2", "--classify")
    assert result.returncode == 0, result.stderr
    generator = load(run)
    results = check(out, result.stdout, generator, pixels[order], labels[order], 2)
    predicted = generator.classify(pixels[order], orders=2).argmax(axis=1)
    assert results["accuracy by Bayes' rule"] == pytest.approx((predicted == labels[order]).mean())


def test_random_tokens_are_no_held_out_images(run, tmp_path):
    """Converted weights have a config with synthetic data."""
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["name"] = "synthetic"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert "the run has no held-out records: name some with --records=FOLDER" in refusal(
        "likelihood", f"--checkpoint={tmp_path / 'run'}"
    )


def test_records_are_read_batch_by_batch(run, tmp_path, monkeypatch):
    sizes, read = [], TokenRecords.read

    def spy(self, indices, crops=0):
        sizes.append(len(indices))
        return read(self, indices, crops)

    monkeypatch.setattr(TokenRecords, "read", spy)
    result = call("likelihood", f"--checkpoint={run}", f"--out={tmp_path}", "--num=20", f"--batch_size={BATCH}")
    assert result.returncode == 0, result.stderr
    assert sizes == [BATCH, BATCH, 4]
    places = token_batches.evenly_spaced(20, 360)
    images, labels = (each[places] for each in digits_split("heldout"))
    results = check(tmp_path, result.stdout, load(run), images, labels, 0)
    assert "accuracy by Bayes' rule" not in results


def test_mistakes_with_likelihood(run, tmp_path):
    assert "name a model with --checkpoint=RUN" in refusal("likelihood")
    both = refusal("likelihood", f"--checkpoint={run}", f"--images={tmp_path}", f"--records={tmp_path}")
    assert "name one of --images and --records, not both" in both
    for flag in ("images", "records"):
        assert f"--{flag}=nothing: there is no such folder" in refusal(
            "likelihood", "--checkpoint=not read", f"--{flag}=nothing"
        )
    within = refusal("likelihood", "--checkpoint=not read", f"--images={tmp_path}", f"--out={tmp_path / 'out'}")
    assert f"--out={tmp_path / 'out'} lies in the images' folder" in within
    (tmp_path / "otter").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "otter" / "a.png")
    assert "no class is named 'otter'" in refusal("likelihood", f"--checkpoint={run}", f"--images={tmp_path}")
    assert "it has no dataset.json" in refusal("likelihood", f"--checkpoint={run}", f"--records={tmp_path}")
