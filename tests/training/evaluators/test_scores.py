import pytest

from rar_jax.data.digits import DigitsTokenizer
from rar_jax.evaluation.sample_scores import DigitsScorer
from rar_jax.training.evaluators.scores import SampleScores
from rar_jax.training.preemption import Preempted, Preemption


def test_scores_with_and_without_guidance(small_config, digits_sampler):
    config = small_config(eval={"score_every": 5, "score_images": 20})
    evaluator = SampleScores(config, digits_sampler, DigitsTokenizer(), DigitsScorer())
    values = evaluator.run(5, {}, {}, Preemption()).values
    assert set(values) == {measure.name for measure in evaluator.measures}
    assert values["score/svm_accuracy_guided"] == values["score/svm_accuracy_unguided"] > 0.8
    assert digits_sampler.calls == [(20, 256, {}), (20, 256, {"guidance_scale": 1.0})]
    larger = {measure.name for measure in evaluator.measures if measure.larger_is_better}
    assert larger == {"score/svm_accuracy_guided", "score/svm_accuracy_unguided"}


def test_a_preempted_evaluation_returns_nothing(small_config, digits_sampler):
    class Asked(Preemption):
        def asked(self):
            return True

    config = small_config(eval={"score_every": 5, "score_images": 20})
    evaluator = SampleScores(config, digits_sampler, DigitsTokenizer(), DigitsScorer())
    with pytest.raises(Preempted):
        evaluator.run(5, {}, {}, Asked())
