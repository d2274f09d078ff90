import re

import jax
import numpy as np
import pytest

from rar_jax.errors import UserError
from rar_jax.parallel.mesh import make_mesh
from rar_jax.sampling.drawing import Batch
from rar_jax.sampling.options import Options
from rar_jax.sampling.sampler import Sampler, jit_decode, sample_tokens

OPTIONS = Options(scan_order="z_curve", guidance_scale=3.0)


@pytest.fixture(scope="module")
def sampler(golden, golden_model):
    """A sampler of the golden model on one device."""
    return Sampler(golden_model, golden.params, make_mesh((1, 1), jax.devices()[:1]))


@pytest.mark.parametrize(
    "options", [OPTIONS, Options(scan_order="random", guidance="linear", guidance_scale=2, top_p=0.9)]
)
def test_batches_and_devices_do_not_matter(golden, golden_model, sampler, options):
    labels = np.arange(10) % 7
    whole = sample_tokens(sampler, labels, options, seed=0, batch_size=10)
    assert whole.shape == (10, 16) and whole.dtype == np.int32
    seen = []
    pieces = sample_tokens(sampler, labels, options, seed=0, batch_size=4, on_batch=seen.append)
    eight = Sampler(golden_model, golden.params, make_mesh((8, 1)))
    spread = sample_tokens(eight, labels, options, seed=0, batch_size=8)
    np.testing.assert_array_equal(whole, pieces)
    np.testing.assert_array_equal(whole, spread)
    assert seen == [4, 4, 2]


def test_devices_send_nothing_to_each_other(golden, golden_model):
    sampler = Sampler(golden_model, golden.params, make_mesh((4, 2)))
    rows = np.arange(8, dtype=np.int32)
    program = jit_decode(golden_model, OPTIONS.plan(golden_model.config), sampler.mesh)
    options = OPTIONS.traced(golden_model.config, seed=0)
    compiled = program.lower(sampler.params, Batch(rows % 7, rows), options).compile()
    assert not re.search("all-(gather|reduce|to-all)|collective-permute|reduce-scatter", compiled.as_text())


def test_orders_are_those_decoded(sampler):
    """Checks what is known of the orders. `tests/sampling/test_decode.py` checks that `decode` uses them."""
    rows = np.arange(3, dtype=np.int32)
    np.testing.assert_array_equal(sampler.orders(rows, 0, OPTIONS)[2][:4], [0, 1, 4, 5])
    random = Options(scan_order="random")
    orders = sampler.orders(rows, 0, random)
    assert (np.sort(orders) == np.arange(16)).all() and (orders != sampler.orders(rows, 1, random)).any()
    np.testing.assert_array_equal(orders[1:], sampler.orders(rows[1:], 0, random))


def test_a_scale_of_one_is_no_guidance_and_a_top_k_of_all_is_none(golden_model):
    def traced(**values):
        return Options(**values).traced(golden_model.config, seed=0)

    free = traced(guidance="none")
    assert free.weights is None and free.choice.top_k is None and free.choice.top_p is None
    assert traced(guidance="constant", guidance_scale=1, top_k=24).weights is None
    assert traced(top_k=24).choice.top_k is None
    assert traced(top_k=23).choice.top_k == 23
    assert traced(temperature=0).choice.temperature is None


@pytest.mark.parametrize(
    ("labels", "batch_size", "message"),
    [
        ([7], 4, r"class 7 is not in 0\.\.6"),
        ([-1], 4, "class -1"),
        ([], 4, "at least one class"),
        ([0], 0, "batch size 0"),
    ],
)
def test_bad_input(sampler, labels, batch_size, message):
    with pytest.raises(UserError, match=message):
        sample_tokens(sampler, labels, OPTIONS, seed=0, batch_size=batch_size)
