import numpy as np
import pytest

from rar_jax.data.loader import DeviceBatches, eval_batches, train_iterator


class Numbers:
    """Records for tests: record i has the label i, and its crop k is the single token k."""

    def __init__(self, num_records, num_images=None, crops_per_record=1):
        self.num_records, self.num_images = num_records, num_images or num_records
        self.crops_per_record = crops_per_record

    def read(self, indices, crops=0):
        indices = np.asarray(indices, np.int32)
        return {"tokens": np.broadcast_to(crops, indices.shape)[:, None], "label": indices}


def rows_of(host, hosts):
    """Returns the rows of a global batch of 8 that one of several hosts reads."""
    return np.array_split(np.arange(8), hosts)[host]


def labels(batches):
    return np.stack([batch["label"] for batch in batches])


def test_an_epoch_has_every_image_once_and_drops_the_partial_batch():
    seen = labels(train_iterator(Numbers(50), 8, 18, seed=0))
    assert seen.shape == (18, 8)
    epochs = seen.reshape(3, 48)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 48
    assert not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize("hosts", [2, 4])
def test_global_batches_are_the_same_for_any_number_of_hosts(hosts):
    whole = labels(train_iterator(Numbers(50), 8, 12, seed=3))
    parts = [labels(train_iterator(Numbers(50), 8, 12, 3, rows_of(host, hosts))) for host in range(hosts)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 4), (4, 2), (2, 1)])
def test_a_restored_position_gives_the_batches_that_follow_it(before, after):
    """The position is global: a run can resume on another number of hosts."""

    def hosts(count):
        return [train_iterator(Numbers(50), 8, 18, 1, rows_of(host, count)) for host in range(count)]

    expected = labels(hosts(1)[0])
    running = hosts(before)
    for _ in range(7):
        taken = [next(host) for host in running]
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in taken]), expected[6])
    states = [host.get_state() for host in running]
    assert all(state == states[0] for state in states)
    restored = hosts(after)
    for host in restored:
        host.set_state(states[0])
    np.testing.assert_array_equal(np.concatenate([labels(host) for host in restored], axis=1), expected[7:])


def test_crops_of_an_image_take_turns():
    batches = list(train_iterator(Numbers(50, crops_per_record=4), 10, 8 * 5, seed=0))
    taken = np.empty((8, 50), int)
    for i, batch in enumerate(batches):
        taken[i // 5, batch["label"]] = batch["tokens"][:, 0]
    # Every epoch uses every image, and four epochs use each crop of an image once.
    for cycle in (taken[:4], taken[4:]):
        np.testing.assert_array_equal(np.sort(cycle, axis=0), np.arange(4)[:, None].repeat(50, axis=1))
    assert (taken[:4] != taken[4:]).any() and len(np.unique(taken[0])) == 4


def test_epochs_of_separate_crops_share_one_shuffle_of_all_records():
    records = Numbers(103, num_images=10)
    seen = labels(train_iterator(records, 5, 2 * 20, seed=0)).reshape(4, 50)
    for shuffle in (seen[:2], seen[2:]):
        assert len(set(shuffle.ravel().tolist())) == 100
    assert set(seen[:2].ravel().tolist()) != set(seen[2:].ravel().tolist())
    assert not np.array_equal(seen[0], seen[2])


def test_batches_are_put_ahead_but_the_position_counts_only_those_taken():
    put = []

    def batches():
        return train_iterator(Numbers(50), 8, 18, seed=1)

    ahead = DeviceBatches(batches(), lambda batch: put.append(batch) or batch["label"])
    expected = labels(batches())
    for i in range(5):
        np.testing.assert_array_equal(next(ahead), expected[i])
    assert len(put) > 5
    again = batches()
    again.set_state(ahead.get_state())
    np.testing.assert_array_equal(labels(again), expected[5:])
    for i in range(5, 18):
        np.testing.assert_array_equal(next(ahead), expected[i])
    with pytest.raises(StopIteration):
        next(ahead)


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_draws_from_all_records_and_pads_the_last_batch(hosts):
    count = {0: 21, 13: 13, 100: 21}
    for asked, expected in count.items():
        batches = [list(eval_batches(Numbers(21), 8, asked, rows_of(host, hosts))) for host in range(hosts)]
        numbers = np.concatenate([batch["number"][batch["weight"] == 1] for host in batches for batch in host])
        np.testing.assert_array_equal(np.sort(numbers), np.arange(expected))
        images = np.concatenate([batch["label"][batch["weight"] == 1] for host in batches for batch in host])
        assert len(set(images.tolist())) == expected
        assert not np.array_equal(np.sort(images), np.arange(13))
        assert all(batch["label"].shape == (8 // hosts,) for host in batches for batch in host)
