import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from rar_jax.errors import UserError
from rar_jax.evaluation.digits import digits_scores
from rar_jax.evaluation.sample_scores import DigitsScorer
from rar_jax.generate import load
from rar_jax.sampling import sampler as sampler_module
from rar_jax.sampling.sampler import Sampler
from rar_jax.training import loop
from rar_jax.training.evaluators import sampling
from rar_jax.training.metrics import read_metrics
from rar_jax.training.run import prepare


def train(config, folder):
    loop.train(prepare(config, folder))
    return {entry["step"]: entry for entry in read_metrics(folder) if "train/loss" in entry}


@pytest.fixture(scope="module")
def whole_run(small_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    config = small_config(
        train={"stop_step": 20},
        checkpoint={"every": 10},
        eval={"every": 10, "samples_per_class": 2, "report_samples": 20, "score_every": 15, "score_images": 30},
    )
    return folder, train(config, folder)


def test_a_run_leaves_everything_in_its_folder(whole_run):
    folder, logged = whole_run
    assert list(logged) == [5, 10, 15, 20]
    for name in ("config.json", "metrics.jsonl", "figures/curves.png", "figures/scan_orders.png", "report.json"):
        assert (folder / name).stat().st_size > 0, name
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["10", "20"]
    assert [path.name for path in sorted((folder / "samples").iterdir())] == ["step_00000010.png", "step_00000020.png"]
    assert list(folder.glob("events.out.tfevents.*"))
    report = json.loads((folder / "report.json").read_text())
    assert {"target_loss", "svm_accuracy_samples", "frechet_samples", "frechet_train"} <= report.keys()
    scored = {entry["step"]: entry for entry in read_metrics(folder) if "score/svm_accuracy_guided" in entry}
    assert list(scored) == [15, 20]
    names = [f"score/{name}_{end}" for end in ("guided", "unguided") for name in ("frechet_pixels", "svm_accuracy")]
    assert list(scored[15]) == ["step", *names]
    labels = np.arange(30) % 10
    images = load(folder).generate(labels, seed=0, guidance_scale=1)
    assert scored[20]["score/frechet_pixels_unguided"] == pytest.approx(
        digits_scores(images, labels)["frechet_pixels"], rel=1e-6
    )
    evaluated = [entry for entry in read_metrics(folder) if "heldout/target_loss" in entry]
    assert [entry["step"] for entry in evaluated] == [10, 20]
    assert evaluated[-1]["heldout/target_loss"] < evaluated[0]["heldout/target_loss"]


def test_a_resumed_run_equals_an_undisturbed_one(whole_run, small_config, tmp_path):
    _, undisturbed = whole_run
    # The run ends after step 13 and was saved at step 10. Its log after step 10 is replaced.
    train(small_config(train={"stop_step": 13}, checkpoint={"every": 10, "keep": 1}), tmp_path)
    newest = tmp_path / "checkpoints" / "13"
    assert newest.exists()
    resumed = train(small_config(train={"stop_step": 20}, checkpoint={"every": 10}), tmp_path)
    for step in (15, 20):
        assert resumed[step]["train/loss"] == pytest.approx(undisturbed[step]["train/loss"], abs=0.2)
    assert resumed[20] == undisturbed[20]


def test_a_run_that_is_beyond_a_shorter_end_is_done(whole_run, small_config, tmp_path):
    folder, _ = whole_run
    shutil.copytree(folder, tmp_path / "run")
    config = small_config(train={"epochs": 1, "batch_size": 256}, optimizer={"warmup_epochs": 0})
    assert config.last_step < 20
    allowed = ["train.epochs", "train.batch_size", "optimizer.warmup_epochs"]
    assert loop.train(prepare(config, tmp_path / "run", allowed))


def test_the_loaded_generator_has_the_trained_weights(whole_run, small_config):
    folder, _ = whole_run
    generator = load(folder)
    assert generator.step == 20
    assert load(folder, step=10).step == 10
    run = prepare(small_config(train={"stop_step": 20}), folder)
    sampler = Sampler(run.program.model, run.begin()[0].params, run.mesh)
    run.close()
    jax.tree.map(np.testing.assert_array_equal, generator.sampler.params, sampler.params)
    images = generator.generate([3, 1, 4], seed=5)
    assert images.shape == (3, 8, 8, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images, generator.generate([3, 1, 4], seed=5))


def test_synthetic_data_needs_no_data_set_and_no_pictures(small_config, tmp_path, caplog):
    """A run whose pictures cannot be written is complete, with a warning for each."""
    (tmp_path / "figures").write_text("a file where a folder should be")
    config = small_config(
        data={"name": "synthetic", "tokenizer": "none", "num_images": 64}, train={"stop_step": 2, "log_every": 1}
    )
    assert list(train(config, tmp_path)) == [1, 2]
    assert sum("training is not affected" in message for message in caplog.messages) == 2


@pytest.mark.parametrize("damaged", ["state/_METADATA", "state/manifest.ocdbt", "data/metadata"])
def test_unreadable_checkpoint(whole_run, small_config, tmp_path, damaged):
    folder = tmp_path / "run"
    shutil.copytree(whole_run[0], folder)
    for step in ("10", "20"):
        (folder / "checkpoints" / step / damaged).write_bytes(b"\x00garbage")
        # Without a manifest, as after a crash, Orbax itself must detect the damage.
        (folder / "checkpoints" / step / "manifest.json").unlink()
    # Nothing proves damage, so that the error comes through as it is and no older checkpoint is used instead.
    with pytest.raises(Exception) as raised:
        loop.train(prepare(small_config(), folder))
    assert not isinstance(raised.value, UserError) and "checkpoints/20 was read" in raised.value.__notes__[-1]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"10", "20"}
    assert not (folder / "damaged_checkpoints").exists()
    if damaged.startswith("state"):
        with pytest.raises(Exception) as raised:
            load(folder)
        assert not isinstance(raised.value, UserError) and "checkpoints/20 was read" in raised.value.__notes__[-1]


def test_nothing_to_load(whole_run, tmp_path):
    with pytest.raises(UserError, match=r"it has no config\.json"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint of step 7 .*\[10, 20\]"):
        load(whole_run[0], step=7)


def test_a_run_is_not_resumed_with_another_method(whole_run, small_config):
    """Every field that differs is named with both values, and the folder keeps its config."""
    folder, _ = whole_run
    before = (folder / "config.json").read_text()
    changed = small_config(permutation={"scan_order": "spiral_out"}, optimizer={"learning_rate": 0.5})
    message = r"scan_order='row_major', not 'spiral_out', config\.optimizer\.learning_rate=0\.003, not 0\.5: train in"
    with pytest.raises(UserError, match=message):
        prepare(changed, folder)
    assert (folder / "config.json").read_text() == before
    run = prepare(small_config(train={"stop_step": 30, "remat": "none"}, mesh={"fsdp": 4}), folder)
    assert run.begin()[0].step == 20
    run.close()
    prepare(changed, folder, ["permutation.scan_order", "optimizer.learning_rate"]).close()


def test_the_checkpoint_with_the_best_score_is_kept(small_config, tmp_path, monkeypatch):
    """The largest accuracy is best. The scored samples have another batch size than the grid."""
    batches, accuracies = [], iter([0.4, 0.1, 0.2, 0.3])

    def score(scorer, images, labels):
        # Each evaluation scores samples with guidance and then without.
        accuracy = next(accuracies) if len([size for _, size in batches if size == 256]) % 2 else 0.0
        return {"frechet_pixels": 1.0, "svm_accuracy": accuracy}

    def sample_tokens(sampler, labels, *options, batch_size, **more):
        batches.append((len(labels), batch_size))
        return sampler_module.sample_tokens(sampler, labels, *options, batch_size=batch_size, **more)

    monkeypatch.setattr(sampling, "sample_tokens", sample_tokens)
    monkeypatch.setattr(DigitsScorer, "score", score)
    config = small_config(
        train={"stop_step": 12},
        checkpoint={"every": 3, "keep": 1, "best_metric": "score/svm_accuracy_guided"},
        eval={"every": 12, "samples_per_class": 1, "score_every": 3, "score_images": 40},
    )
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_step=6)), tmp_path)
    # Scores from before the restart count too.
    train(config, tmp_path)
    entries = read_metrics(tmp_path)
    scores = {e["step"]: e["score/svm_accuracy_guided"] for e in entries if "score/svm_accuracy_guided" in e}
    assert scores == {3: 0.4, 6: 0.1, 9: 0.2, 12: 0.3}
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {3, 12}
    assert set(batches) == {(40, 256), (10, 10)}
    # The evaluators declare every name that they log.
    logged = {name for e in entries for name in e if name.startswith(("score/", "heldout/"))}
    logged |= {name for e in entries if "heldout/target_loss" in e for name in e if name.startswith("train/")}
    run = prepare(config, tmp_path)
    assert logged == {measure.name for each in run.evaluators for measure in each.measures}
    run.close()
