import functools

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from rar_jax.errors import UserError
from rar_jax.evaluation import neighbours
from rar_jax.evaluation.neighbours import nearest, nearest_images, num_distances, precision_recall


def by_definition(reference, samples, k=3):
    radii = [np.sort(cdist(x, x), axis=1)[:, k] for x in (reference, samples)]
    between = cdist(samples, reference)
    return (between <= radii[0]).any(axis=1).mean(), (between <= radii[1][:, None]).any(axis=0).mean()


@pytest.mark.parametrize("k", [1, 5])
def test_blocks_do_not_matter(monkeypatch, k):
    rng = np.random.default_rng(0)
    # The features are far from the origin, where |a|^2 + |b|^2 - 2ab in float32 would lose all digits.
    reference, samples = rng.standard_normal((700, 4)) + 3000, rng.standard_normal((900, 4)) * 1.5 + 3000
    expected = by_definition(reference, samples, k)
    assert 0.5 < expected[0] < 0.99
    for block in (4096, 256):
        monkeypatch.setattr(neighbours, "_BLOCK", block)
        seen = []
        found = precision_recall(reference, samples, k, on_block=seen.append)
        assert found == pytest.approx(expected, abs=1.5 / 700)
        assert sum(seen) == num_distances(700, 900)


def test_on_block_is_called_after_the_block_is_computed(monkeypatch):
    computed, pending = [], []

    def noted(function, *args):
        computed.append(function(*args))
        return computed[-1]

    for name in ("_update", "_update_both", "_covered"):
        monkeypatch.setattr(neighbours, name, functools.partial(noted, getattr(neighbours, name)))

    def on_block(distances):
        pending.append(not all(leaf.is_ready() for leaf in jax.tree.leaves(computed[-1])))

    # Blocks are large enough to take longer than their dispatch.
    monkeypatch.setattr(neighbours, "_BLOCK", 1024)
    a = np.random.default_rng(0).standard_normal((2048, 512))
    precision_recall(a, a, on_block=on_block)
    assert len(pending) == 10 and not any(pending)


def test_a_set_covers_itself_and_nothing_far_away():
    a = np.random.default_rng(0).standard_normal((300, 10))
    assert precision_recall(a, a) == (1, 1)
    assert precision_recall(a, a + 100) == (0, 0)


def test_copies_of_one_image_are_at_distance_zero():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((500, 300)).astype(np.float32)
    constant = reference[:1].repeat(200, axis=0)
    assert precision_recall(reference, constant) == (1, 1 / 500)


def test_too_few():
    with pytest.raises(UserError, match="3 sample images are too few for precision and recall: use at least 4"):
        precision_recall(np.zeros((9, 2)), np.zeros((3, 2)))


def test_nearest(monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK", 256)
    rng = np.random.default_rng(0)
    reference, queries = rng.standard_normal((600, 5)), rng.standard_normal((7, 5))
    np.testing.assert_array_equal(nearest(queries, reference, 4), np.argsort(cdist(queries, reference))[:, :4])


def test_nearest_images(monkeypatch):
    monkeypatch.setattr(neighbours, "_QUERIES", 4)
    rng = np.random.default_rng(0)
    reference, queries = (rng.integers(0, 256, (count, 2, 3)).astype(np.uint8) for count in (50, 10))
    queries[3] = reference[7]
    flat = cdist(queries.reshape(10, -1).astype(float), reference.reshape(50, -1).astype(float))
    found = nearest_images(queries, reference)
    np.testing.assert_array_equal(found.places, flat.argmin(axis=1))
    np.testing.assert_allclose(found.distances, flat.min(axis=1) / np.sqrt(6), rtol=1e-12)
    assert found.distances[3] == 0
