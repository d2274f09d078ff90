import numpy as np
import pytest

from rar_jax.data.loader import eval_batches, train_iterator


class Numbers:
    """Image i is the number i."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def read(self, indices):
        indices = np.asarray(indices, np.int32)
        return {"tokens": indices[:, None], "label": indices}


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
    parts = [labels(train_iterator(Numbers(50), 8, 12, 3, host, hosts)) for host in range(hosts)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_restored_position_gives_the_batches_that_would_have_come():
    iterator = train_iterator(Numbers(50), 8, 18, seed=1)
    for _ in range(7):
        next(iterator)
    state = iterator.get_state()
    rest = labels(iterator)
    assert rest.shape == (11, 8)
    again = train_iterator(Numbers(50), 8, 18, seed=1)
    again.set_state(state)
    np.testing.assert_array_equal(labels(again), rest)
    # The position is global: two hosts go on from one host's.
    hosts = [train_iterator(Numbers(50), 8, 18, 1, host, 2) for host in range(2)]
    for host in hosts:
        host.set_state(state)
    np.testing.assert_array_equal(np.concatenate([labels(host) for host in hosts], axis=1), rest)


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_pads_the_last_batch(hosts):
    count = {0: 21, 13: 13, 100: 21}
    for asked, expected in count.items():
        batches = [list(eval_batches(Numbers(21), 8, asked, host, hosts)) for host in range(hosts)]
        rows = np.concatenate([batch["row"][batch["weight"] == 1] for host in batches for batch in host])
        np.testing.assert_array_equal(np.sort(rows), np.arange(expected))
        assert all(batch["label"].shape == (8 // hosts,) for host in batches for batch in host)
