import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from rar_jax.sampling.choose import Choice, choose_token, token_probabilities

LOGITS = np.array([0.3, -1.0, 1.2, 0.0, -0.4, 2.0])


def truncated_softmax(temperature, top_k, top_p):
    """Computes the distribution by its definition, one token after another, from the most likely one down."""
    probabilities = scipy.special.softmax(LOGITS / temperature)
    allowed = sorted(range(6), key=lambda i: -probabilities[i])[: top_k or 6]
    total, kept, reached = probabilities[allowed].sum(), [], 0.0
    for token in allowed:
        if kept and reached >= (top_p or 1.0):
            break
        kept.append(token)
        reached += probabilities[token] / total
    truncated = np.zeros(6)
    truncated[kept] = probabilities[kept]
    return truncated / truncated.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (0.5, None, None),
        (1.0, None, None),
        (2.0, None, None),
        (1.0, 3, None),
        (0.7, 1, None),
        (1.0, 6, None),
        (1.0, None, 0.6),
        (2.0, None, 0.9),
        (1.0, None, 1e-9),
        (1.5, 4, 0.8),
    ],
)
def test_frequencies_follow_the_softmax(temperature, top_k, top_p):
    count = 50_000
    keys = jax.random.split(jax.random.key(0), count)
    choice = Choice(*(None if value is None else jnp.asarray(value) for value in (temperature, top_k, top_p)))
    tokens = jax.jit(choose_token)(keys, jnp.tile(jnp.float32(LOGITS), (count, 1)), choice)
    probabilities = token_probabilities(jnp.float32(LOGITS)[None], choice)[0]
    np.testing.assert_allclose(probabilities, truncated_softmax(temperature, top_k, top_p), atol=1e-6)
    expected = truncated_softmax(temperature, top_k, top_p) * count
    observed = np.bincount(np.asarray(tokens), minlength=6)
    possible = expected > 0
    assert not observed[~possible].any()
    if possible.sum() > 1:
        assert scipy.stats.chisquare(observed[possible], expected[possible]).pvalue > 1e-4


def test_each_row_is_truncated_by_itself():
    logits = jnp.array([[5.0, 1.0, 0.0, -1.0], [-1.0, 0.0, 1.0, 5.0], [0.0, 0.0, -9.0, -9.0]])
    for top_k, top_p in ((1, None), (None, 0.5)):
        tokens = choose_token(jax.random.split(jax.random.key(0), 3), logits, Choice(1.0, top_k, top_p))
        np.testing.assert_array_equal(tokens[:2], [0, 3])
        # Both tokens are kept if they tie.
        assert tokens[2] in (0, 1)


def test_greedy_takes_the_most_likely_token():
    logits = jax.random.normal(jax.random.key(0), (50, 9))
    tokens = choose_token(jax.random.split(jax.random.key(1), 50), logits, Choice(None))
    np.testing.assert_array_equal(tokens, np.argmax(logits, axis=1))
