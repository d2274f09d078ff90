import dataclasses

import jax
import numpy as np
import pytest
from running import tiny_study

from rar_jax.checkpoints.store import CheckpointStore
from rar_jax.data.digits import DigitsTokenizer, digits_split
from rar_jax.evaluation.statistics import frechet_distance
from rar_jax.generate import load
from rar_jax.models.rar import RAR
from rar_jax.studies.plan import RANDOM, TARGET, Row, cells_of
from rar_jax.studies.scores import CellScorer, heldout_images, read_curves
from rar_jax.training import loop
from rar_jax.training.run import prepare
from rar_jax.training.step import token_losses

ROWS = [Row("both", {"permutation.anneal_start_epoch": 1, "permutation.anneal_end_epoch": 2}, orders=(TARGET, RANDOM))]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A study of one cell, the cell, its folder, its data and its scores."""
    study, folder = dataclasses.replace(tiny_study(), rows=ROWS), tmp_path_factory.mktemp("cell")
    (cell,) = cells_of(study)
    run = prepare(cell.config, folder)
    loop.train(run)
    return study, cell, folder, run.datasets, CellScorer(study, cell, run.datasets, lambda: None).score(folder)


def test_validation_and_test_images_are_the_held_out_images(scored):
    _, cell, _, datasets, _ = scored
    validation, test = heldout_images(datasets, cell.config)
    assert len(validation.tokens) == len(test.tokens) == 180
    found = np.concatenate([validation.tokens, test.tokens])
    heldout = DigitsTokenizer().encode(digits_split("heldout")[0])
    assert sorted(map(tuple, found)) == sorted(map(tuple, heldout))
    for images in (validation, test):
        assert np.bincount(images.labels, minlength=10).min() > 8


def test_losses_are_those_of_the_right_images(scored):
    """Training evaluates the validation images, and the others are the test images."""
    _, cell, folder, datasets, values = scored
    store = CheckpointStore(folder)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    step, params = store.restore_newest_sampling_params(device, "float32")
    assert step == 22
    found = {}
    for name, images in zip(("validation_end", "loss_end"), heldout_images(datasets, cell.config), strict=True):
        orders = np.broadcast_to(np.arange(64, dtype=np.int32), images.tokens.shape)
        examples = {"visited": images.tokens, "label": images.labels, "order": orders}
        losses = jax.jit(lambda params, examples: token_losses(RAR(cell.config.model), params, examples)[0])
        found[name] = float(losses(params, examples).mean())
    assert {name: values[name] for name in found} == pytest.approx(found, abs=1e-4)
    assert abs(found["validation_end"] - found["loss_end"]) > 1e-3
    # Losses still fall at the end of this short run, so that the best step is the last one.
    curves = read_curves(folder)
    assert [step for step, _ in curves["heldout/target_loss"]] == [11, 22]
    assert values["best_step"] == 22 and values["loss_best"] == values["loss_end"]


def test_samples_are_scored_against_the_test_images(scored):
    study, cell, folder, datasets, values = scored
    test = heldout_images(datasets, cell.config)[1]
    labels = np.arange(study.samples) % 10
    options = {"": {"guidance_scale": 1.0}, "_guided": {"guidance_scale": values["guidance_scale"]}}
    for suffix, given in options.items():
        images = load(folder).generate(labels, seed=cell.seed, **given)
        expected = frechet_distance(DigitsTokenizer().encode(images), test.tokens)
        assert values[f"frechet{suffix}"] == pytest.approx(expected, rel=1e-5)
    assert values["guidance_scale"] in study.guidance_scales
    # Samples in random order are others.
    assert values["random_frechet"] != values["frechet"]
    for name in ("precision", "recall", "accuracy", "nearest"):
        assert {name, f"{name}_guided", f"random_{name}", f"random_{name}_guided"} <= values.keys()
    assert 0 <= values["accuracy"] <= 1 < values["nearest"]


def test_a_study_that_chooses_settings_reads_no_test_image(scored):
    study, cell, folder, datasets, values = scored
    choosing = dataclasses.replace(study, choosing=True)
    found = CellScorer(choosing, cell, datasets, lambda: None).score(folder)
    assert found == {name: values[name] for name in ("validation_end", "validation_best", "best_step")}
