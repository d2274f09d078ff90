import math

import jax
import numpy as np
import pytest

from rar_jax.models.sizes import ModelConfig, VQGANConfig
from rar_jax.models.vqgan import VQGAN
from rar_jax.performance.costs import (
    Work,
    decode_modulation_flops,
    decode_passes,
    decode_work,
    forward_flops,
    modulation_flops,
    recomputed_flops,
    train_flops,
    vqgan_train_flops,
)

# T = 4, V = 5, D = 4, MLP 6, two blocks: small enough to compute by hand.
SMALL = ModelConfig(
    grid_side=2,
    codebook_size=5,
    num_classes=3,
    width=4,
    depth=2,
    num_heads=2,
    mlp_width=6,
    dropout=0.0,
    attention_dropout=0.0,
)
RAR_B = ModelConfig(
    grid_side=16,
    codebook_size=1024,
    num_classes=1000,
    width=768,
    depth=24,
    num_heads=16,
    mlp_width=3072,
    dropout=0.0,
    attention_dropout=0.0,
)


def test_forward_by_hand():
    # At each of five places, a block has qkv 4 x 12, projection 4 x 4, MLP 4 x 6 and 6 x 4: 112 multiply-adds.
    products = 2 * 5 * 112 * 2
    # Scores and weighted values take 4 multiply-adds each per pair; there are 1 + 2 + 3 + 4 + 5 pairs.
    attention = 2 * (4 + 4) * 15 * 2
    # Six modulations of 4 x 4 in each block, and two at the four places of the head.
    modulations = 2 * 5 * 6 * 16 * 2 + 2 * 4 * 2 * 16
    head = 2 * 4 * 4 * 5
    assert forward_flops(SMALL) == products + attention + modulations + head
    assert modulation_flops(SMALL) == 2 * 14 * 16


def test_decode_by_hand():
    steps = list(decode_passes(SMALL, sequences=2, itemsize=4, sizes=(1,) * 4))
    assert len(steps) == 4
    kernels, head = 2 * 112, 4 * 5
    # The two places of the prefill attend to one and two places, that of the last step to five.
    assert steps[0].flops == 2 * (2 * (2 * kernels + head) + 4 * 2 * 4 * 3)
    assert steps[-1].flops == 2 * (2 * (kernels + head) + 4 * 2 * 4 * 5)
    assert steps[-1].bytes == 4 * (kernels + head + 2 * 2 * 2 * 4 * 5)
    # Two classes and the null class, at five places; the first place has no modulations of the head.
    assert decode_modulation_flops(SMALL, 3) == 3 * (5 * 2 * 14 * 16 - 2 * 2 * 16)


def test_passes_with_groups_by_hand():
    first, second = decode_passes(SMALL, sequences=1, itemsize=4, sizes=(3, 1))
    kernels, head = 2 * 112, 4 * 5
    # Two tokens and two more branches of the class token, which sees two places; three tokens are predicted.
    assert first.flops == 2 * (4 * kernels + 3 * head) + 4 * 2 * 4 * (1 + 2 + 2 + 2)
    # Three tokens at places three to five.
    assert second.flops == 2 * (3 * kernels + head) + 4 * 2 * 4 * (3 + 4 + 5)
    assert second.bytes == 4 * (kernels + head + 2 * 2 * 4 * 5)


def test_a_decode_sums_to_a_forward_pass():
    """Decoding one image without guidance computes every product of a forward pass once."""
    steps = list(decode_passes(RAR_B, sequences=1, itemsize=4, sizes=(1,) * 256))
    total = sum(work.flops for work in steps) + decode_modulation_flops(RAR_B, 1)
    assert total == pytest.approx(forward_flops(RAR_B), rel=1e-12)


def test_the_floor_is_the_slower_of_bytes_and_flops():
    assert Work(flops=10, bytes=10).seconds(flop_rate=1, bandwidth=2) == 10
    assert Work(flops=10, bytes=10).seconds(flop_rate=2, bandwidth=1) == 10


def test_the_work_of_a_guided_decode():
    passes, modulations = decode_work(RAR_B, 1, guided=True, itemsize=4, sizes=(1,) * 256)
    steps = sum(work.seconds(flop_rate=1e30, bandwidth=30e9) for work in passes)
    # 24 blocks of 7,077,888 weights and a head of 786,432 are read 256 times; the cache adds a little.
    weights = 4 * 256 * (24 * 7_077_888 + 786_432) / 30e9
    assert weights < steps < 1.1 * weights
    assert modulations == pytest.approx(2 * 257 * 2 * (24 * 6 + 2) * 768**2, rel=1e-3)
    assert passes == list(decode_passes(RAR_B, sequences=2, itemsize=4, sizes=(1,) * 256))


def test_recomputation_is_part_of_a_forward_pass():
    """Under "block" it is the forward pass without the head; otherwise the scores, half of the attention FLOPs."""
    assert recomputed_flops(SMALL, "none") == recomputed_flops(SMALL, "dots") == 4 * 15 * 2 * 2
    places_products = 2 * 5 * (112 + 6 * 16) * 2
    assert recomputed_flops(SMALL, "block") == places_products + 2 * (4 + 4) * 15 * 2
    assert train_flops(SMALL) == 3 * forward_flops(SMALL)


def convolutions(jaxpr):
    """Yields the FLOPs of every convolution of a program for one image, from its shapes."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            (_, height, width, _), kernel = equation.outvars[0].aval.shape, equation.invars[1].aval.shape
            yield 2 * height * width * math.prod(kernel)
        for inner in equation.params.values():
            if hasattr(inner, "jaxpr"):
                yield from convolutions(inner.jaxpr)


@pytest.mark.parametrize(
    ("model", "side"),
    [(VQGANConfig(), 256), (VQGANConfig(16, (1, 2, 4), 1, 4), 32), (VQGANConfig(32, (2, 2), 2, 8), 16)],
)
def test_a_tokenizer_has_the_convolutions_of_its_program(model, side):
    network, image = VQGAN(model), np.zeros((1, side, side, 3), np.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image)
    forward = sum(convolutions(jax.make_jaxpr(network.apply)(params, image).jaxpr))
    search = 2 * (side // model.downsampling) ** 2 * model.codebook_size * model.latent_width
    assert vqgan_train_flops(model, side) == 3 * forward + search
