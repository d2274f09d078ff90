import numpy as np
import pytest

from rar_jax.sampling.groups import group_sizes, segments


@pytest.mark.parametrize("schedule", ["uniform", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 7, 16, 60, 64, 100, 255, 256])
def test_every_token_is_drawn_once_in_as_many_passes_as_asked(schedule, steps):
    sizes = group_sizes(schedule, 256, steps)
    assert len(sizes) == steps and sum(sizes) == 256 and min(sizes) >= 1
    if schedule == "uniform":
        assert max(sizes) - min(sizes) <= 1


def test_cosine_begins_with_small_groups():
    drawn = np.cumsum(group_sizes("cosine", 256, 32))
    expected = np.round(256 * (1 - np.cos(np.pi * np.arange(1, 33) / 64)))
    # The first passes draw at least one token each.
    np.testing.assert_array_equal(drawn[6:], expected[6:])
    assert drawn[0] == 1


def test_no_steps_are_one_token_a_pass():
    assert group_sizes("cosine", 16, 0) == (1,) * 16


@pytest.mark.parametrize("sizes", [(1,) * 64, (4,) * 16, group_sizes("uniform", 64, 27), group_sizes("cosine", 64, 20)])
def test_segments_read_every_group_but_the_last(sizes):
    found = segments(sizes, [16, 32, 64])
    np.testing.assert_array_equal(np.concatenate([segment.sizes for segment in found]), sizes[:-1])
    counts = np.cumsum(sizes) - sizes
    np.testing.assert_array_equal(np.concatenate([segment.counts for segment in found]), counts[:-1])
    drawn = np.array(sizes[1:])
    assert len({segment.width for segment in found}) <= 4
    for segment in found:
        mine, drawn = drawn[: len(segment.counts)], drawn[len(segment.counts) :]
        assert max(segment.sizes.max(), mine.max()) <= segment.width
        # The rows of the last pass end at the end of the cache.
        assert segment.counts[-1] + 2 + 2 * segment.width - 1 == segment.length
