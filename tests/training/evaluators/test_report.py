import json

from rar_jax.data.digits import DigitsTokenizer
from rar_jax.training.evaluators.report import DigitsReport
from rar_jax.training.preemption import Preemption


def test_the_report_holds_losses_and_scores(small_config, digits_sampler, tmp_path, capsys):
    config = small_config(eval={"report_samples": 20, "samples_per_class": 3})
    evaluator = DigitsReport(config, digits_sampler, DigitsTokenizer(), tmp_path)
    measured = {"heldout/target_loss": 1.25, "heldout/random_loss": 2.5}
    values = evaluator.run(7, {}, measured, Preemption()).values
    assert set(values) == {measure.name for measure in evaluator.measures}
    assert values["report/svm_accuracy_samples"] > 0.8
    report = json.loads((tmp_path / "report.json").read_text())
    scores = {name.removeprefix("report/"): value for name, value in values.items()}
    assert report == {"step": 7, "target_loss": 1.25, "random_loss": 2.5} | scores
    assert "target order: 1.2500 nats a token (random order: 2.5000)" in capsys.readouterr().out
    # The report uses the batch size of the sample grid, and is due at the last step only.
    assert digits_sampler.calls == [(20, 30, {})]
    assert evaluator.schedule.due(config.last_step) and not evaluator.schedule.due(config.last_step - 1)
