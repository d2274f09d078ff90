import numpy as np

from rar_jax.data.digits import digits_split
from rar_jax.evaluation.digits import digits_report


def test_real_digits_score_as_real_digits_and_noise_does_not():
    images, labels = digits_split("heldout")
    report = digits_report(images, labels)
    assert report["svm_accuracy_samples"] == report["svm_accuracy_heldout"] > 0.97
    assert abs(report["frechet_samples"]) < 1e-6 < report["frechet_train"]
    shuffled = digits_report(images, np.roll(labels, 1))
    assert shuffled["svm_accuracy_samples"] < 0.4
    noise = np.random.default_rng(0).integers(256, size=images.shape, dtype=np.uint8)
    assert digits_report(noise, labels)["frechet_samples"] > 20 * report["frechet_train"]
