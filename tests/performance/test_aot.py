"""Analysing compiled programs. The eight devices here stand in for a slice, so that no other compiler is needed."""

import subprocess
import sys

import jax
import pytest
from running import config_without_data

from rar_jax.models.sizes import VQGANConfig
from rar_jax.performance import aot
from rar_jax.performance.chips import CHIPS
from rar_jax.performance.costs import train_flops, vqgan_train_flops
from rar_jax.performance.topologies import Topology
from rar_jax.tokenizer_config import ImageDataConfig, QuantizerConfig, TokenizerConfig, TokenizerTrainConfig

IMPORT = """
import os
import jax
before = dict(os.environ)
import absl.flags, rar_jax.performance.aot
assert dict(os.environ) == before
assert not [name for name in absl.flags.FLAGS.flags_by_module_dict() if name.startswith("rar_jax")]
"""


def test_an_import_changes_no_environment_and_defines_no_flag():
    subprocess.run([sys.executable, "-c", IMPORT], check=True, timeout=120)


def test_an_analysis_has_the_sections_and_their_sums(monkeypatch):
    """The eight devices here stand in for a slice, so that the analysis is tested without libtpu."""
    monkeypatch.setattr(aot, "open_topology", lambda name: Topology(jax.devices(), CHIPS["v5e"], {}))
    config = config_without_data("digits", model={"depth": 1}, mesh={"fsdp": 8})
    results = aot.analyse(config, "v5e:2x4")
    assert results["digits, train, on v5e:2x4"] == {
        "devices": 8,
        "kind": "cpu",
        "these figures": "by count, not run",
    }
    used = dict(results["memory per device, by the compiler"])
    assert used.pop("available, GB") == 16 * 2**30 / 1e9
    assert used.pop("total, GB") == pytest.approx(sum(used.values())) and used["arguments, GB"] > 0
    work, roofline = results["work per device, by formula"], results["roofline, by the data sheet"]
    assert work["model FLOP"] == config.train.batch_size / 8 * train_flops(config.model)
    assert roofline["products, ms"] == pytest.approx(1e3 * sum(work.values()) / 197e12)
    sent = results["collectives per device, by the compiler"]["sent, GB"]
    assert sent > 0 and roofline["collectives, ms"] == pytest.approx(1e3 * sent / 200)
    # The decode loop sends nothing, and reads its weights at each of its steps.
    decoded = aot.analyse(config, "v5e:2x4", "sample", batch_size=8)
    assert decoded["collectives per device, by the compiler"] == {"sent, GB": 0}
    assert decoded["work per device, by formula"]["bytes read"] > 1e9 * used["arguments, GB"]


def test_an_analysis_of_a_tokenizer(monkeypatch):
    monkeypatch.setattr(aot, "open_topology", lambda name: Topology(jax.devices()[:2], CHIPS["H200"], {}))
    config = TokenizerConfig(
        name="tiny",
        model=VQGANConfig(width=16, multipliers=(1,), num_blocks=1, latent_width=2, codebook_size=16),
        quantizer=QuantizerConfig(levels=(4, 4)),
        train=TokenizerTrainConfig(batch_size=4),
        data=ImageDataConfig(image_size=8),
    )
    results = aot.analyse(config, "h200:2", "tokenizer")
    assert results["tiny, tokenizer, on h200:2"]["these figures"] == "by count, not run"
    assert results["memory per device, by the compiler"]["available to JAX by default, GB"] == pytest.approx(105.75)
    flops = results["work per device, by formula"]["model FLOP"]
    assert flops == 2 * vqgan_train_flops(config.model, 8)
    counted = 1e12 * results["kernels per device, by count, not run"]["products, TFLOP"]
    assert 0.5 * flops < counted < 2 * flops
    step = results["roofline, by the data sheet"]
    assert step["utilisation, counted, %"] == pytest.approx(
        100 * flops / 989e9 / step["kernels, launches, collectives, ms"]
    )
