"""How good are samples of the digits? Two measures that need no network trained elsewhere."""

import numpy as np
from sklearn.svm import SVC

from rar_jax.data.digits import DigitsTokenizer, digits_split
from rar_jax.evaluation.statistics import frechet_distance

# The setting of scikit-learn's own example on this data set.
_GAMMA = 0.001


def digits_report(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores samples against the real digits, beside the same scores of real digits.

    Args:
      images: uint8 [N, 8, 8, 3], N at least 2.
      labels: int [N], the class each was sampled for.

    Returns:
      svm_accuracy_samples, svm_accuracy_heldout: the share that an SVM trained on the real training digits recognises
      as their class. frechet_samples, frechet_train: the Frechet distance to the held-out digits in pixel statistics
      (grey levels 0..16), of the samples and, as the yardstick, of the real training digits.
    """
    tokenizer = DigitsTokenizer()
    train, heldout = ((tokenizer.encode(x), y) for x, y in map(digits_split, ("train", "heldout")))
    samples = tokenizer.encode(images)
    svm = SVC(gamma=_GAMMA).fit(*train)
    return {
        "svm_accuracy_samples": float(svm.score(samples, labels)),
        "svm_accuracy_heldout": float(svm.score(*heldout)),
        "frechet_samples": frechet_distance(samples, heldout[0]),
        "frechet_train": frechet_distance(train[0], heldout[0]),
    }
