import numpy as np

from rar_jax.data.digits import DigitsTokenizer, digits_split
from rar_jax.images.files import image_grid
from rar_jax.training.evaluators.samples import Samples
from rar_jax.training.preemption import Preemption


def test_a_grid_has_a_row_for_each_class(small_config, digits_sampler):
    config = small_config(eval={"samples_per_class": 2})
    result = Samples(config, digits_sampler, DigitsTokenizer()).run(5, {}, {}, Preemption())
    images, classes = digits_split("heldout")
    expected = np.stack([images[classes == label][0] for label in np.arange(10).repeat(2)])
    np.testing.assert_array_equal(result.pictures["samples"], image_grid(expected, columns=2))
    assert not result.values
    assert digits_sampler.calls == [(20, 20, {})]
