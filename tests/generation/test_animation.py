import numpy as np
import pytest
from safetensors.numpy import save_file

from rar_jax.generate import load
from rar_jax.generation import animation
from rar_jax.generation.animation import animate
from rar_jax.generation.pictures import SampleGrid


@pytest.fixture(scope="module")
def generator(golden, vqgan_file, tmp_path_factory):
    """The golden model of 16 tokens, with a tokenizer of patches of 2 x 2 pixels."""
    path = tmp_path_factory.mktemp("weights") / "rar.safetensors"
    save_file(golden.tensors("params/"), path)
    return load(path, tokenizer=str(vqgan_file))


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({}, range(1, 17)),
        ({"steps": 4, "scan_order": "random"}, [4, 8, 12, 16]),
        # At most five frames, each of four passes.
        ({"_PASSES": 5}, [1, 5, 9, 13, 16]),
    ],
)
def test_images_appear_in_their_order_and_end_as_samples(generator, tmp_path, monkeypatch, options, drawn):
    """Each frame adds the patches of a pass in full colour, and the last frame shows the images of `generate`."""
    frames, options = [], dict(options)
    monkeypatch.setattr(animation, "write_animation", lambda path, drawn: frames.extend(drawn))
    monkeypatch.setattr(animation, "_PASSES", options.pop("_PASSES", 64))
    shown = []
    draw = SampleGrid.draw
    monkeypatch.setattr(SampleGrid, "draw", lambda grid, images: shown.append(images) or draw(grid, images))
    labels, options = np.array([2, 5, 2, 2], np.int32), generator.options(guidance="none", **options)
    assert animate(generator, labels, options, tmp_path / "a.gif", seed=3) == 3
    samples = generator.generate(labels, seed=3, guidance="none", steps=options.steps, scan_order=options.scan_order)
    # Two images of a class fit a row of the grid.
    np.testing.assert_array_equal(shown[-1], samples[[0, 2, 1]])
    orders = generator.sampler.orders(np.array([0, 2, 1]), 3, options)
    known = [(images != 128).any(axis=-1)[:, ::2, ::2].reshape(3, 16) for images in shown]
    assert len(frames) == len(known) == len(drawn)
    for count, each in zip(drawn, known, strict=True):
        for image, order in zip(each, orders, strict=True):
            # A drawn pixel can be grey by chance.
            assert not image[order[count:]].any() and image[order[:count]].mean() > 0.7


def test_verified_images_advance_at_their_own_pace(generator, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(SampleGrid, "draw", lambda grid, images: shown.append(images))
    monkeypatch.setattr(animation, "write_animation", lambda path, frames: None)
    options = {"guidance": "none", "steps": 4, "verify": True}
    labels = np.arange(4, dtype=np.int32)
    animate(generator, labels, generator.options(**options), tmp_path / "a.gif", seed=1)
    np.testing.assert_array_equal(shown[-1], generator.generate(labels, seed=1, **options))
    known = np.array([(images != 128).any(axis=3).sum(axis=(1, 2)) for images in shown])
    # Some frame shows images that differ by a patch or more.
    assert (np.diff(known, axis=0) >= 0).all() and np.ptp(known, axis=1).max() >= 4
