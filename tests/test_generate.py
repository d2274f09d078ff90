import dataclasses

import numpy as np
import pytest
import scipy.special
from safetensors.numpy import save_file

from rar_jax.checkpoints.weights import Weights
from rar_jax.errors import UserError
from rar_jax.generate import load, show
from rar_jax.generation.loading import _final_randomness
from rar_jax.run_folder import write_config


@pytest.fixture(scope="module")
def generator(golden, vqgan_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("rar") / "rar.safetensors"
    save_file(golden.tensors("params/"), path)
    return load(path, tokenizer=str(vqgan_file))


def test_images_of_classes_by_name_and_by_index(generator):
    named = dataclasses.replace(generator, class_names=("tench", "otter", "macaw", "a", "b", "c", "d"))
    images = generator.generate([1, 1, 2], seed=3, guidance_scale=2.0)
    assert images.shape == (3, 8, 8, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(named.generate(["otter", "1", "Macaw"], seed=3, guidance_scale=2.0), images)
    assert (generator.generate([1, 1, 2], seed=4, guidance_scale=2.0) != images).any()
    assert show(images, columns=2).size == (2 * 64 + 3 * 2, 2 * 64 + 3 * 2)


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (["otter"], {}, "class 'otter': the names of this model's classes are not known; give its index"),
        ([7], {}, r"class 7 is not in 0\.\.6"),
        ([], {}, "at least one class"),
        ([0], {"temprature": 1.0}, "there is no option 'temprature'"),
        ([0], {"batch_size": 0}, "batch size 0 must be at least 1"),
    ],
)
def test_mistakes(generator, classes, options, message):
    with pytest.raises(UserError, match=message):
        generator.generate(classes, **options)


def test_no_weights_are_read_without_a_tokenizer(small_config, tmp_path):
    (tmp_path / "rar.bin").write_bytes(b"not read")
    with pytest.raises(UserError, match=r"rar\.bin comes without a tokenizer: name one with --tokenizer=WEIGHTS"):
        load(tmp_path / "rar.bin")
    with pytest.raises(UserError, match="--tokenizer=digts: there is no such file or folder"):
        load(tmp_path / "rar.bin", tokenizer="digts")
    for name, message in (
        ("none", "run comes without a tokenizer: name one with --tokenizer=WEIGHTS"),
        ("runs/moved", r"config\.data\.tokenizer=runs/moved, which is not there: name it with --tokenizer=WEIGHTS"),
    ):
        write_config(tmp_path / "run", small_config(data={"tokenizer": name}))
        with pytest.raises(UserError, match=message):
            load(tmp_path / "run")


def test_copies_of_an_image_are_encoded_once(generator, monkeypatch):
    images, encoded = generator.generate([0, 1], seed=5)[[0, 1, 1, 0, 0]], []
    encode = generator.tokenizer.encode
    monkeypatch.setattr(generator.tokenizer, "encode", lambda x: encoded.append(len(x)) or encode(x))
    tokens = generator._encode(images)
    assert encoded == [2]
    np.testing.assert_array_equal(tokens, encode(images))


@pytest.mark.parametrize(
    ("window", "step", "expected"),
    [((0, 18), 0, 0.0), ((18, 18), 18, 1.0), ((9, 18), 18, 0.0), ((9, 9), 9, 1.0), ((9, 9), 10, 0.0), ((0, 0), 1, 0.0)],
)
def test_randomness_after_the_last_update(small_config, window, step, expected):
    """A run whose window ends with it made every update with r = 1. Steps are epochs here."""
    config = small_config(
        train={"epochs": 18, "batch_size": 1437},
        optimizer={"warmup_epochs": 0},
        permutation={"anneal_start_epoch": window[0], "anneal_end_epoch": window[1]},
    )
    assert _final_randomness(Weights("rar", None, {}, "", step=step, config=config)) == expected


def test_an_edit_keeps_what_is_not_masked(generator, caplog):
    images = generator.generate([0, 1, 2], seed=5, guidance_scale=2.0)
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    caplog.set_level("WARNING", "rar_jax")
    edited = generator.edit(images, mask, [1, 1, 1], seed=1, temperature=1.5, steps=4)
    assert "annealed to its scan order" in caplog.text
    assert generator.order_warning(generator.options(scan_order="z_curve"))
    assert not generator.order_warning(generator.options(scan_order="row_major"))
    # As many steps as tokens are one token per pass.
    assert generator.order_warning(generator.options(steps=15))
    assert not generator.order_warning(generator.options(steps=16))
    # Verified groups have the distribution of one token per pass.
    assert not generator.order_warning(generator.options(steps=4, verify=True))
    assert generator.order_warning(generator.options(steps=4, verify=True), editing=True)
    np.testing.assert_array_equal(edited[:, 4:], images[:, 4:])
    assert (edited[:, :4] != images[:, :4]).any()
    np.testing.assert_array_equal(generator.edit(images, np.zeros((8, 8), bool), [1, 1, 1]), images)
    with pytest.raises(UserError, match="schedule=cosine does not go with editing"):
        dataclasses.replace(generator, tokenizer=None).edit(images, mask, [1, 1, 1], schedule="cosine", steps=4)
    with pytest.raises(UserError, match="1 classes are given for 3 images"):
        generator.edit(images, mask, [1])
    for wrong in (images.repeat(2, 1).repeat(2, 2), np.zeros((3, 16), int)):
        with pytest.raises(UserError, match=r"images of shape .* must be uint8, from 0 to 255, of .* \(N, 8, 8, 3\)"):
            generator.edit(wrong, mask, [1, 1, 1], paste=False)


def test_painting_ends_with_the_images_of_generate_and_edit(generator):
    classes, options = [1, 1, 2], {"seed": 5, "guidance_scale": 2.0}
    first, *_, last = generator.paint(classes, every=6, **options)
    assert last.done and not first.done
    np.testing.assert_array_equal(last.images(), generator.generate(classes, **options))
    # One token is known, and each token is a patch of 2 x 2 pixels.
    unknown = np.full((3, 8, 8, 3), 128)
    np.testing.assert_array_equal(first.images()[:, 2:], unknown[:, 2:])
    assert (first.images()[:, :2, :2] != unknown[:, :2, :2]).any()
    images, mask = last.images(), np.arange(64).reshape(8, 8) < 32
    first, *_, last = generator.paint([0, 1, 2], edited=(images, mask), every=3, seed=1)
    np.testing.assert_array_equal(first.images()[:, :4], unknown[:, :4])
    np.testing.assert_array_equal(first.images()[:, 4:], images[:, 4:])
    np.testing.assert_array_equal(last.images(), generator.edit(images, mask, [0, 1, 2], seed=1))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), r"images of shape \(1, 8, 8, 3\) and dtype float32 must be uint8"),
        (np.zeros((1, 15), int), r"tokens of shape \(1, 15\) and dtype int64 must be integers of the shape \(N, 16\)"),
        (np.zeros((0, 16), int), "no images are given: give at least one"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no images are given: give at least one"),
        (np.zeros((1, 16)), r"tokens of shape \(1, 16\) and dtype float64 must be integers"),
        (np.full((1, 16), 24), "tokens from 24 to 24 must be codes from 0 to 23"),
    ],
)
def test_images_and_tokens_that_are_not_the_models(generator, images, message):
    with pytest.raises(UserError, match=message):
        generator.classify(images)


def test_likelihood_and_classes(generator, golden):
    tokens = golden["tokens"].astype(np.int32)
    classes = [0, 1, 2, 3]
    fixed = generator.log_likelihood(tokens, classes)
    assert fixed.orders.shape == (4, 1) and fixed.tokens.shape == (4, 16)
    np.testing.assert_allclose(fixed.tokens.sum(axis=1), fixed.mean, rtol=1e-5)
    np.testing.assert_allclose(fixed.mixture, fixed.mean, rtol=1e-6)
    found = generator.log_likelihood(tokens, classes, orders=3, batch_size=3)
    assert found.orders.shape == (4, 3)
    np.testing.assert_allclose(found.mixture, scipy.special.logsumexp(found.orders, axis=1) - np.log(3), rtol=1e-5)
    np.testing.assert_allclose(found.tokens.sum(axis=1), found.mean, rtol=1e-5)
    assert (found.orders.std(axis=1) > 0).all()
    probabilities = generator.classify(tokens)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    # Class k of image k, by Bayes' rule, from the likelihood of each class.
    each = np.stack([generator.log_likelihood(tokens, [c] * 4).mean for c in range(7)], axis=1).astype(np.float64)
    expected = np.exp(each - np.logaddexp.reduce(each, axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 17}, "steps=17 must be at most 16"),
        ({"steps": 4, "verify": True, "schedule": "cosine"}, "schedule=cosine does not go with verify=True"),
        ({"schedule": "linear"}, "schedule='linear' must be one of uniform, cosine"),
    ],
)
def test_groups_that_cannot_be_used(generator, options, message):
    with pytest.raises(UserError, match=message):
        generator.generate([0], **options)
