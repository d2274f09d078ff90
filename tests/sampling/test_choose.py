import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from rar_jax.sampling.choose import choose_token


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature):
    count = 50_000
    logits = jnp.array([0.3, -1.0, 1.2, 0.0, -0.4, 2.0])
    keys = jax.random.split(jax.random.key(0), count)
    tokens = choose_token(keys, jnp.tile(logits, (count, 1)), jnp.float32(temperature))
    expected = scipy.special.softmax(np.asarray(logits, np.float64) / temperature) * count
    observed = np.bincount(np.asarray(tokens), minlength=6)
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-4


def test_greedy_takes_the_likeliest():
    logits = jax.random.normal(jax.random.key(0), (50, 9))
    tokens = choose_token(jax.random.split(jax.random.key(1), 50), logits, None)
    np.testing.assert_array_equal(tokens, np.argmax(logits, axis=1))
