import json

import numpy as np

from rar_jax.data.digits import DigitsTokenizer
from rar_jax.data.glyphs import glyph_images
from rar_jax.evaluation import glyphs
from rar_jax.training.evaluators.report import DIGITS, Report, glyph_comparison
from rar_jax.training.preemption import Preemption


def test_the_report_holds_losses_and_scores(small_config, digits_sampler, tmp_path, capsys):
    config = small_config(eval={"report_samples": 20, "samples_per_class": 3})
    evaluator = Report(config, digits_sampler, DigitsTokenizer(), tmp_path, DIGITS)
    measured = {"heldout/target_loss": 1.25, "heldout/random_loss": 2.5}
    values = evaluator.run(7, {}, measured, Preemption()).values
    assert set(values) == {measure.name for measure in evaluator.measures}
    assert values["report/svm_accuracy_samples"] > 0.8
    report = json.loads((tmp_path / "report.json").read_text())
    scores = {name.removeprefix("report/"): value for name, value in values.items()}
    assert report == {"step": 7, "target_loss": 1.25, "random_loss": 2.5} | scores
    assert "target order: 1.2500 nats per token (random order: 2.5000)" in capsys.readouterr().out
    # The report uses the batch size of the sample grid, and is due at the last step only.
    assert digits_sampler.calls == [(20, 30, {})]
    assert evaluator.schedule.due(config.last_step) and not evaluator.schedule.due(config.last_step - 1)


class NumberTokenizer:
    """Its tokens are the numbers of held-out glyphs, and its images these glyphs, with one grey level added."""

    def decode(self, tokens):
        return glyph_images("heldout", tokens[:, 0])[0] ^ 1


class HeldOut:
    num_images = 15

    def read(self, indices):
        return {"tokens": indices[:, None]}


class NumberSampler:
    """Its samples are held-out glyphs of other classes, in half of the cases."""

    def tokens(self, params, labels, batch_size, check, **options):
        return (np.arange(len(labels)) + np.arange(len(labels)) % 2)[:, None]


def test_the_report_of_glyphs(small_config, monkeypatch, tmp_path, capsys):
    class Classifier:
        """Features are mean colours. It knows the class of every held-out glyph, with and without the grey level."""

        def outputs(self, images):
            known = glyph_images("heldout", np.arange(30))[0]
            distances = np.abs(images[:, None].astype(int) - known).mean(axis=(2, 3, 4))
            return images.mean(axis=(1, 2)), np.eye(36)[distances.argmin(axis=1) % 10]

    monkeypatch.setattr(glyphs, "glyph_classifier", Classifier)
    monkeypatch.setattr(glyphs, "NUM_HELDOUT", 30)
    glyphs._heldout.cache_clear()
    data = {"name": "glyphs", "tokenizer": "t", "num_images": 40, "image_size": 32, "downsampling": 4}
    config = small_config(eval={"report_samples": 20}, data=data)
    comparison = glyph_comparison(config, NumberTokenizer(), HeldOut())
    evaluator = Report(config, NumberSampler(), NumberTokenizer(), tmp_path, comparison)
    measured = {"heldout/target_loss": 1.25, "heldout/random_loss": 2.5}
    values = evaluator.run(7, {}, measured, Preemption()).values
    glyphs._heldout.cache_clear()
    assert list(values) == [measure.name for measure in evaluator.measures]
    assert values["report/glyph_accuracy_samples"] == 0.5 and values["report/glyph_accuracy_heldout"] == 1
    # The reconstructions are the first 15 held-out glyphs.
    again = NumberTokenizer().decode(np.arange(15)[:, None])
    assert values["report/nearest_reconstructions"] == np.median(glyphs.distance_to_training(again, 40, 10))
    assert "50.0% of 20 samples, 100.0% of the real held-out glyphs" in capsys.readouterr().out
