import jax
import numpy as np
import pytest

from rar_jax.parallel.mesh import make_mesh
from rar_jax.sampling.sampler import sample_tokens

OPTIONS = {"seed": 0, "order": "z_curve", "guidance_scale": 3.0, "guidance_power": 1.0, "temperature": 1.0}


@pytest.fixture(scope="module")
def one_device():
    return make_mesh((1, 1), jax.devices()[:1])


def test_batches_and_devices_do_not_matter(golden, golden_model, one_device):
    labels = np.arange(10) % 7
    whole = sample_tokens(golden_model, golden.params, labels, one_device, batch_size=10, **OPTIONS)
    assert whole.shape == (10, 16) and whole.dtype == np.int32
    seen = []
    pieces = sample_tokens(
        golden_model, golden.params, labels, one_device, batch_size=4, on_batch=seen.append, **OPTIONS
    )
    spread = sample_tokens(golden_model, golden.params, labels, make_mesh((8, 1)), batch_size=8, **OPTIONS)
    np.testing.assert_array_equal(whole, pieces)
    np.testing.assert_array_equal(whole, spread)
    assert seen == [4, 4, 2]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([7], {}, r"class 7 is not in 0\.\.6"),
        ([-1], {}, "class -1"),
        ([], {}, "at least one class"),
        ([0], {"order": "zigzag"}, "zigzag"),
        ([0], {"temperature": -1.0}, "temperature -1"),
        ([0], {"guidance_power": 0.0}, "guidance_power 0"),
        ([0], {"temperature": float("nan")}, "temperature nan"),
        ([0], {"guidance_scale": -3.0}, "guidance_scale -3"),
        ([0], {"batch_size": 0}, "batch size 0"),
    ],
)
def test_bad_input(golden, golden_model, one_device, labels, options, message):
    with pytest.raises(ValueError, match=message):
        sample_tokens(golden_model, golden.params, labels, one_device, **{"batch_size": 4} | OPTIONS | options)
