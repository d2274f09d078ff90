import numpy as np
import pytest

from rar_jax.sampling.pace import Pace, accepted_shares, tokens_per_pass


def test_tokens_and_acceptances_are_counted_over_all_batches():
    first = Pace(np.array([4, 8]), np.array([[0, 3, 2, 0], [0, 1, 1, 0]]), np.array([[0, 2, 1, 0], [0, 1, 0, 0]]))
    second = Pace(np.array([4]), np.array([[0, 4, 1, 0]]), np.array([[0, 1, 1, 0]]))
    # Three images of 16 tokens in 16 passes.
    assert tokens_per_pass([first, second], 16) == pytest.approx(3)
    # Places without an examination have no share: the first one, and the fourth one here.
    assert accepted_shares([first, second]) == pytest.approx({2: 4 / 8, 3: 2 / 4})
