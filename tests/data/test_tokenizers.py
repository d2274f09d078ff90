import dataclasses

import numpy as np
import pytest
from conftest import DATA

from rar_jax.checkpoints.weights import load_weights
from rar_jax.data import tokenizers
from rar_jax.data.tokenizers import load_tokenizer, open_tokenizer, tokenizer_for
from rar_jax.errors import UserError


@pytest.fixture(scope="module")
def golden():
    return np.load(DATA / "vqgan_tiny.npz")


@pytest.fixture(scope="module")
def tokenizer(vqgan_file):
    return open_tokenizer(str(vqgan_file), 16)


def test_a_file_of_weights_is_a_tokenizer(tokenizer):
    assert (tokenizer.grid_side, tokenizer.codebook_size, tokenizer.downsampling) == (8, 24, 2)
    assert tokenizer.batch_size == 2 * 8


def test_images_go_to_codes_and_back(tokenizer, golden):
    images = np.rint(golden["images_nchw"].transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    codes = tokenizer.encode(images)
    assert codes.shape == (2, 64) and codes.dtype == np.int32
    # The golden images are not whole grey levels, so rounding changes a few codes.
    assert (codes == golden["tokens"]).mean() > 0.97
    decoded = tokenizer.decode(golden["tokens"])
    expected = golden["decoded_clipped_nchw"].transpose(0, 2, 3, 1) * 255
    assert decoded.dtype == np.uint8 and np.abs(decoded - expected).max() <= 0.51


def test_any_number_of_images(tokenizer):
    images = np.random.default_rng(0).integers(256, size=(tokenizer.batch_size + 3, 16, 16, 3), dtype=np.uint8)
    codes = tokenizer.encode(images)
    np.testing.assert_array_equal(tokenizer.encode(images[-5:]), codes[-5:])
    assert tokenizer.decode(codes).shape == images.shape


def test_the_fingerprint_is_of_the_weights(vqgan_file, tokenizer, tmp_path):
    copy = tmp_path / "elsewhere.safetensors"
    copy.write_bytes(vqgan_file.read_bytes())
    assert open_tokenizer(str(copy), 32).fingerprint == tokenizer.fingerprint
    data = bytearray(copy.read_bytes())
    data[-2] ^= 1
    copy.write_bytes(data)
    assert open_tokenizer(str(copy), 32).fingerprint != tokenizer.fingerprint


def test_a_config_names_its_tokenizer(small_config, vqgan_file):
    data = {"name": "synthetic", "tokenizer": str(vqgan_file), "image_size": 16, "downsampling": 2}
    config = small_config(data=data, model={"codebook_size": 24})
    assert load_tokenizer(config).codebook_size == 24
    for changes, message in (
        ({"model": {"codebook_size": 17}}, r"model\.codebook_size=17, but config\.data\.tokenizer=.* has 24"),
        ({"data": data | {"image_size": 8, "downsampling": 1}}, r"model\.grid_side=8, but .* has 4"),
        ({"data": data | {"tokenizer": "digts"}}, r"config\.data\.tokenizer=digts: no weights in 'digts'"),
        ({"data": data | {"tokenizer": "digits"}}, "image size 16 must be 8"),
    ):
        with pytest.raises(UserError, match=message):
            load_tokenizer(small_config(**{"data": data} | changes))


def test_a_tokenizer_is_opened_for_the_codes_of_a_model(small_config, vqgan_file, monkeypatch):
    """The weights are read once. The model's config gets their size of images."""
    read = []
    monkeypatch.setattr(tokenizers, "load_weights", lambda *names: read.append(names) or load_weights(*names))
    config = small_config(model={"codebook_size": 24})
    tokenizer, changed = tokenizer_for(config, str(vqgan_file))
    assert read == [(str(vqgan_file), "vqgan")] and tokenizer.grid_side == config.model.grid_side
    data = {"tokenizer": str(vqgan_file), "image_size": 2 * config.model.grid_side, "downsampling": 2}
    assert changed == dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
    for config, name, message in (
        (small_config(), vqgan_file, "codebook_size=24, but the model has 17: name the tokenizer"),
        (
            small_config(model={"grid_side": 4}, data={"name": "synthetic", "tokenizer": "none", "image_size": 4}),
            "digits",
            "grid_side=8, but the model has 4",
        ),
    ):
        with pytest.raises(UserError, match=f"--tokenizer={name} has {message}"):
            tokenizer_for(config, str(name))


def test_image_size_must_be_a_multiple(vqgan_file):
    with pytest.raises(UserError, match="image size 15 must be a multiple of 2, the tokenizer's downsampling"):
        open_tokenizer(str(vqgan_file), 15)
