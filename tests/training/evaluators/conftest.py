import numpy as np
import pytest

from rar_jax.data.digits import DigitsTokenizer, digits_split


class DigitsSampler:
    """Stands for a `StepSampler`. Its samples are real held-out digits of the requested classes."""

    def __init__(self):
        self.calls = []

    def tokens(self, params, labels, batch_size, check, **options):
        check()
        self.calls.append((len(labels), batch_size, options))
        images, classes = digits_split("heldout")
        return DigitsTokenizer().encode(np.stack([images[classes == label][0] for label in labels]))


@pytest.fixture
def digits_sampler():
    return DigitsSampler()
