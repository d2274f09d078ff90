"""The benchmarks as library functions, with small models and given ceilings."""

import pytest

from rar_jax.errors import UserError
from rar_jax.performance import ceilings
from rar_jax.performance.benchmarks import sample, train, train_tokenizer
from rar_jax.performance.costs import vqgan_train_flops


@pytest.fixture(autouse=True)
def fast_ceilings(monkeypatch):
    """Ceilings that no machine reaches, instead of measured ones, which take seconds."""
    monkeypatch.setattr(ceilings, "product_rate", lambda dtype: 1e15)
    monkeypatch.setattr(ceilings, "bandwidth", lambda: 1e15)


def test_train(small_config, tmp_path):
    config = small_config(train={"batch_size": 8})
    results = train.measure(config, steps=1, profile=str(tmp_path))["training step, digits"]
    assert results["images/s"] == pytest.approx(8 / results["step, s, median"])
    assert results["product rate per device, FLOP/s"] == 1e15 and 0 < results["model FLOP utilisation"] < 1
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_train_tokenizer(tiny_tokenizer):
    config = tiny_tokenizer(train={"batch_size": 8})
    results = train_tokenizer.measure(config, steps=1)["training step, tokenizer_f16"]
    assert results["images/s"] == pytest.approx(8 / results["step, s, median"])
    # Eight devices share the batch, so that each has one image.
    assert results["model FLOP per step and device"] == vqgan_train_flops(config.model, 8)


def test_sample(small_config):
    (section,) = sample.measure(small_config(sample={"steps": 4}), [8], repeats=1).values()
    assert section["passes"] == 4
    assert section["images/s"] == pytest.approx(8 / section["decode, s, median"])
    assert 0 < section["floor / time"] < 1
    # The codebook of the digits is not that of the published tokenizer.
    assert "images/s with detokenization" not in section


def test_verified_groups_have_no_fixed_passes(small_config):
    with pytest.raises(UserError, match="verify=True: the number of passes depends on the draws"):
        sample.measure(small_config(sample={"verify": True}), [8], [4])


@pytest.mark.parametrize("size", [0, 12])
def test_sample_refuses_a_batch_that_the_devices_cannot_share(small_config, size):
    with pytest.raises(UserError, match=f"batch_size={size} must be a multiple of the 8 devices here"):
        sample.measure(small_config(), [8, size])
