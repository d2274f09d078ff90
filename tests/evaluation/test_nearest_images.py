import json

import numpy as np
import pytest

from rar_jax.errors import UserError
from rar_jax.evaluation.image_sets import NpzImages
from rar_jax.evaluation.nearest_images import compare_with_training, find_nearest


class Identity:
    """A tokenizer that changes no image."""

    fingerprint = "identity"

    def encode(self, images):
        return images

    def decode(self, tokens):
        return tokens


@pytest.fixture
def make(tmp_path):
    """A function that makes a set of images uint8 [N, 8, 8, 3]."""

    def images(name, pixels):
        np.savez(tmp_path / f"{name}.npz", pixels)
        return NpzImages(tmp_path / f"{name}.npz")

    return images


def noise(count, seed, side=8):
    return np.random.default_rng(seed).integers(256, size=(count, side, side, 3), dtype=np.uint8)


def test_nearest_by_brute_force(make, monkeypatch):
    monkeypatch.setattr("rar_jax.evaluation.nearest_images._BLOCK", 40)
    training, queries = noise(100, 0), noise(7, 1)
    found = find_nearest(queries, make("training", training))
    squared = ((queries[:, None].astype(float) - training) ** 2).mean(axis=(2, 3, 4))
    np.testing.assert_array_equal(found.places, squared.argmin(axis=1))
    np.testing.assert_allclose(found.distances, np.sqrt(squared.min(axis=1)))


def test_large_images_are_compared_by_the_means_of_their_patches(make):
    training = np.repeat(np.repeat(noise(20, 0, 32), 2, axis=1), 2, axis=2)
    found = find_nearest(training[[7, 3]], make("training", training))
    assert found.places.tolist() == [7, 3] and found.distances.tolist() == [0, 0]


def test_copies_are_counted_and_shown(make, tmp_path, capsys):
    training = noise(60, 0)
    samples = np.concatenate([training[:10] ^ 1, noise(30, 1)])
    report = compare_with_training(
        make("samples", samples),
        make("training", training),
        make("heldout", noise(200, 2)),
        Identity(),
        tmp_path / "out",
    )
    assert report.scores["near_samples"] == pytest.approx(0.25, abs=0.06)
    assert report.scores["nearest_samples"] == pytest.approx(report.scores["nearest_heldout"], rel=0.05)
    assert "the model copies" in capsys.readouterr().out.replace("\n", " ")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["scores"] == report.scores
    assert (tmp_path / "out" / "report.png").exists()


def test_few_held_out_images_do_not_tell_copies(make, tmp_path):
    sets = make("samples", noise(30, 1)), make("training", noise(60, 0)), make("heldout", noise(99, 2))
    report = compare_with_training(*sets, Identity(), tmp_path)
    assert list(report.scores) == ["nearest_samples", "nearest_heldout"]
    assert report.warnings == ["99 held-out images are too few to count copies: compare with 100 or more"]


def test_other_sizes_are_refused(make, tmp_path):
    sets = make("samples", noise(2, 0)), make("training", noise(2, 0, 9)), make("heldout", noise(2, 0))
    with pytest.raises(UserError, match="different sizes"):
        compare_with_training(*sets, Identity(), tmp_path)
