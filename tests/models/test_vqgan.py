import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA

from rar_jax.checkpoints.pytorch import vqgan_from_pytorch
from rar_jax.models.sizes import VQGANConfig, num_groups
from rar_jax.models.vqgan import VQGAN


@pytest.fixture(scope="module")
def tiny():
    """Results of the published PyTorch code on small random weights."""
    return np.load(DATA / "vqgan_tiny.npz")


@pytest.fixture(scope="module")
def network(tiny):
    return vqgan_from_pytorch(
        {name.removeprefix("params/"): tiny[name] for name in tiny.files if name.startswith("params/")}
    )


def nhwc(images):
    return images.transpose(0, 2, 3, 1)


def test_sizes_are_inferred_from_the_shapes(tiny, network):
    config = json.loads(str(tiny["config"]))
    sizes = network[0].config
    assert (sizes.width, sizes.multipliers) == (config["hidden"], tuple(config["channel_mult"]))
    assert (sizes.num_blocks, sizes.latent_width) == (config["num_res_blocks"], config["z_channels"])
    assert (sizes.codebook_size, sizes.downsampling) == (config["codebook"], 2)


@pytest.mark.parametrize(("method", "precision"), [("encode", "HIGHEST"), ("decode_pixels", "HIGH")])
def test_the_precision_on_accelerators(tiny, network, method, precision):
    """Codes need float32 products; for pixels, TF32 on GPUs and three passes of bfloat16 on TPUs are enough."""
    model, params = network
    inputs = nhwc(tiny["images_nchw"]) if method == "encode" else tiny["tokens"].reshape(-1, 8, 8)
    program = str(jax.make_jaxpr(functools.partial(model.apply, method=method))({"params": params}, inputs))
    assert set(re.findall(r"Precision\.(\w+)", program)) == {precision}


def test_encoding_gives_the_published_codes(tiny, network):
    model, params = network

    @jax.jit
    def encode(images):
        def both(vqgan, images):
            latents = vqgan.encoder(images)
            return latents, vqgan.nearest_codes(latents), vqgan.encode(images)

        return model.apply({"params": params}, images, method=both)

    latents, nearest, codes = encode(nhwc(tiny["images_nchw"]))
    np.testing.assert_allclose(latents, nhwc(tiny["latents_nchw"]), atol=1e-4, rtol=0)
    np.testing.assert_array_equal(codes.reshape(2, -1), tiny["tokens"])
    np.testing.assert_array_equal(codes, nearest)


def test_decoding_gives_the_published_images(tiny, network):
    model, params = network

    @jax.jit
    def decode(codes):
        def both(vqgan, codes):
            return vqgan.decoder(vqgan.quantize(codes)), vqgan.decode(codes)

        return model.apply({"params": params}, codes, method=both)

    decoded, clipped = decode(tiny["tokens"].reshape(2, 8, 8))
    np.testing.assert_allclose(decoded, nhwc(tiny["decoded_nchw"]), atol=1e-4, rtol=0)
    np.testing.assert_allclose(clipped, nhwc(tiny["decoded_clipped_nchw"]), atol=1e-4, rtol=0)
    assert (np.asarray(decoded) != np.asarray(clipped)).any()


def test_the_published_network_has_the_published_number_of_parameters():
    model = VQGAN(VQGANConfig())
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 256, 256, 3), np.float32))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 54_515_587
    codes = jax.eval_shape(functools.partial(model.apply, method="encode"), shapes, np.zeros((3, 256, 256, 3)))
    assert codes.shape == (3, 16, 16)


def test_groups_follow_from_the_channels():
    assert [num_groups(0, channels) for channels in (8, 16, 32, 64, 112, 128, 512)] == [1, 1, 2, 4, 7, 32, 32]
    assert num_groups(32, 64) == 32


def test_the_compute_dtype_changes_no_parameter():
    model = VQGAN(VQGANConfig(width=16, multipliers=(1, 2), num_blocks=1, latent_width=2, codebook_size=4))
    half = model.clone(dtype=jnp.bfloat16)
    images = np.random.default_rng(0).random((1, 8, 8, 3)).astype(np.float32)
    params = jax.jit(half.init)(jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    exact, rounded = (
        jax.jit(functools.partial(each.apply, method=lambda vqgan, x: vqgan.encoder(x)))(params, images)
        for each in (model, half)
    )
    assert rounded.dtype == np.float32 and not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.1)
