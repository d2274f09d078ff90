import json
import types

import numpy as np
import pytest
from running import call, refusal, write_run

from rar_jax.data import datasets
from rar_jax.data.digits import DigitsTokenizer, digits_split
from rar_jax.evaluation.digits import digits_scores
from rar_jax.generate import load
from rar_jax.generation import any_order
from rar_jax.generation.any_order import Subject

# Number of held-out images that are read.
HELDOUT = 24


def test_a_model_is_measured_in_any_order(small_config, tmp_path, monkeypatch):
    run, out = tmp_path / "run", tmp_path / "out"
    monkeypatch.setattr(any_order, "_NUM_ORDERS", (0, 1))
    opened = datasets.open_heldout

    def few_heldout(config, tokenizer):
        return types.SimpleNamespace(num_records=HELDOUT, read=opened(config, tokenizer).read)

    monkeypatch.setattr(datasets, "open_heldout", few_heldout)
    write_run(run, small_config(model={"depth": 1}), steps=(1, 2))
    options = [f"--checkpoint={run}", f"--raster={run / 'checkpoints' / '1'}", f"--out={out}", "--num=16", "--seeds=2"]
    options += ["--steps=64,32", "--scan_orders=random", "--guidance=none"]
    first = call("evaluate_orders", *options)
    assert first.returncode == 0, first.stderr
    report = json.loads((out / "orders.json").read_text())
    one, *_, raster = report["steps"]
    assert [(row["schedule"], row["steps"]) for row in report["steps"]] == [
        ("uniform", 64), ("uniform", 32), ("cosine", 32), ("uniform", 64),
    ]  # fmt: skip
    generator, labels = load(run), np.arange(16) % 10

    def scores(generator, **options):
        return digits_scores(generator.generate(labels, guidance="none", **options), labels)["frechet_pixels"]

    assert one["frechet_pixels"]["values"] == [scores(generator, scan_order="random", seed=seed) for seed in (0, 1)]
    assert raster["frechet_pixels"]["values"][0] == scores(load(run, step=1))
    lines = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    assert one["frechet_pixels"]["mean"] == np.mean([line["frechet_pixels"] for line in lines[1:3]])
    _check_held_out(report, generator)
    # The second process has nothing to measure, and the third one measures one cell again.
    measured = []

    def fake(self, cell, on_batch):
        measured.append(cell)
        return {"frechet_pixels": 1.0, "svm_accuracy": 0.5}

    monkeypatch.setattr(Subject, "decode", fake)
    assert call("evaluate_orders", *options).stdout == first.stdout and not measured
    assert (out / "orders.png").exists()
    (out / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    call("evaluate_orders", *options, "--sections=steps")
    assert [(cell.model, cell.seed) for cell in measured] == [(lines[-1]["model"], 1)]
    assert "--out=" in refusal("evaluate_orders", *options, "--num=17")


def _check_held_out(report, generator):
    """Checks verification, completions and classes of the held-out digits against the Python API."""
    (verified,) = report["verify"]
    assert 1 <= verified["tokens_per_pass"]["mean"] <= 2 and 0 < verified["accepted_2"]["mean"] <= 1
    images, labels = (each[:HELDOUT] for each in digits_split("heldout"))
    completed = {row["masked"]: row for row in report["inpainting"]}
    whole = generator.log_likelihood(DigitsTokenizer().encode(images), labels, orders=1).mean
    assert completed["all"]["masked_loss"]["values"][0] == pytest.approx(-whole.mean() / 64, rel=1e-5)
    tokens, mask = DigitsTokenizer().encode(images), np.arange(64) >= 32
    drawn = generator.sampler.orders(np.arange(HELDOUT), 0, generator.options(scan_order="random"))
    known_first = np.array([[*order[~mask[order]], *order[mask[order]]] for order in drawn], np.int32)
    loss = -np.asarray(generator.sampler.log_likelihoods(labels, tokens, known_first))[:, mask].mean()
    assert completed["lower_half"]["masked_loss"]["values"][0] == pytest.approx(loss, rel=1e-5)
    # Half of a real image is nearer to real images than a sample of an untrained model.
    assert completed["all"]["ratio"] == 1 > completed["lower_half"]["ratio"] > 0
    lower = np.arange(64).reshape(8, 8) >= 32
    edited = generator.edit(images, lower, labels, seed=1, scan_order="random", guidance="none")
    expected = digits_scores(edited, labels, "train")["frechet_pixels"]
    assert completed["lower_half"]["frechet_pixels"]["values"][1] == pytest.approx(expected)
    fixed, *_ = report["classification"]
    assert fixed["accuracy"]["mean"] == (generator.classify(images).argmax(axis=1) == labels).mean()
    assert [row["orders"] for row in report["classification"]] == [0, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a model with --checkpoint=RUN"),
        (["--checkpoint=a", "--sections=steps,edit"], "--sections=edit must be some of steps, verify"),
        (["--checkpoint=a", "--sections="], "--sections is empty: name some of steps, verify"),
        (["--checkpoint=a", "--steps=x"], "--steps=x must be numbers, such as 64,16"),
        (["--checkpoint=a", "--steps=4,0"], "--steps=4,0 must be at least 1"),
    ],
)
def test_mistakes_with_evaluate_orders(arguments, message):
    assert message in refusal("evaluate_orders", *arguments)
