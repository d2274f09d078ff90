import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rar_jax.models.attention import causal_attention
from rar_jax.models.dropout import draw_seeds, drop
from rar_jax.parallel.mesh import make_mesh

DROP = jax.jit(drop, static_argnums=2)


def seeds(rows, number=0):
    return draw_seeds(jax.random.key(number), 1, rows).weights[0]


def masks(count, shape, rate):
    """Returns which elements of an array are kept, for each of `count` keys: bool [count, *shape]."""
    return np.stack([np.asarray(DROP(jnp.ones(shape), seeds(shape[0], number), rate)) > 0 for number in range(count)])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_and_the_scale(rate):
    x = jnp.ones((64, 40, 257))
    dropped = np.asarray(DROP(x, seeds(64), rate))
    kept = dropped[dropped > 0]
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-6)
    error = np.sqrt(rate * (1 - rate) / dropped.size)
    assert abs(len(kept) / dropped.size - (1 - rate)) < 4 * error
    # The share is also right within each row, and at each place over all rows, within six standard errors.
    for axes, size in (((1, 2), 40 * 257), ((0, 1), 64 * 40), ((0, 2), 64 * 257)):
        shares = (dropped > 0).mean(axis=axes)
        assert np.abs(shares - (1 - rate)).max() < 6 * np.sqrt(rate * (1 - rate) / size)


def test_rate_zero_and_no_seeds_change_nothing():
    x = jax.random.normal(jax.random.key(0), (2, 3))
    assert drop(x, None, 0.5) is x and drop(x, seeds(2), 0.0) is x


def test_bits_are_not_correlated():
    """Masks of neighbouring places along either axis, of rows and of keys agree as often as by chance."""
    kept = masks(8, (16, 64, 64), 0.5)
    pairs = {
        "places": (kept[..., :-1], kept[..., 1:]),
        "lines": (kept[..., :-1, :], kept[..., 1:, :]),
        "rows": (kept[:, :-1], kept[:, 1:]),
        "keys": (kept[:-1], kept[1:]),
        "powers of two": (kept[..., :32, :], kept[..., 32:, :]),
    }
    for name, (a, b) in pairs.items():
        assert abs((a == b).mean() - 0.5) < 5 * 0.5 / np.sqrt(a.size), name
    # Bytes of the mask are uniform by a chi-square test, which a weak hash fails first.
    words = np.packbits(kept.reshape(-1, 8), axis=1)
    counts = np.bincount(words.ravel(), minlength=256)
    expected = words.size / 256
    assert abs((((counts - expected) ** 2 / expected).sum() - 255) / np.sqrt(2 * 255)) < 5


def test_each_dropout_of_each_block_has_its_own_seeds():
    drawn = draw_seeds(jax.random.key(3), depth=5, rows=7)
    words = np.stack(drawn).reshape(-1, 2)
    assert len(np.unique(words, axis=0)) == 4 * 5 * 7
    other = np.stack(draw_seeds(jax.random.key(4), depth=5, rows=7)).reshape(-1, 2)
    assert not (words == other).all(axis=1).any()


def test_a_row_does_not_depend_on_the_batch():
    np.testing.assert_array_equal(
        np.stack(draw_seeds(jax.random.key(3), 2, 4)), np.stack(draw_seeds(jax.random.key(3), 2, 9))[:, :, :4]
    )
    x = jnp.ones((6, 5, 3))
    np.testing.assert_array_equal(DROP(x, seeds(6), 0.5)[:2], DROP(x[:2], seeds(6)[:2], 0.5))


def test_each_device_hashes_its_own_rows():
    """The mask of a sharded array equals that of an unsharded one, and the devices exchange nothing."""
    mesh = make_mesh((8, 1))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    x, given = jnp.ones((16, 33, 65)), seeds(16)
    sharded = jax.jit(drop, static_argnums=2, in_shardings=(sharding, sharding), out_shardings=sharding)
    np.testing.assert_array_equal(sharded(x, given, 0.3), DROP(x, given, 0.3))
    text = sharded.lower(x, given, 0.3).compile().as_text()
    assert not any(kind in text for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
    assert "[16,33,65]" not in text


def test_the_backward_pass_drops_the_same_elements():
    x = jax.random.normal(jax.random.key(1), (3, 50))
    gradient = jax.grad(lambda x: (DROP(x, seeds(3), 0.4) * 2).sum())(x)
    np.testing.assert_allclose(gradient, np.where(np.asarray(DROP(x, seeds(3), 0.4)) == 0, 0, 2 / 0.6), rtol=1e-6)


def plain_attention(q, k, v):
    """Computes causal attention place by place, in NumPy's float64."""
    out = np.zeros(v.shape)
    for place in range(q.shape[1]):
        scores = np.einsum("bhd,bkhd->bhk", q[:, place], k[:, : place + 1]) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[:, place] = np.einsum("bhk,bkhd->bhd", weights, v[:, : place + 1])
    return out


def test_attention_with_dropout_is_right_on_average():
    """Over many rows, the mean and variance are those of weights that are dropped independently."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 6, 2, 4)) for _ in range(3))
    rate, count = 0.3, 4000

    def rows(x):
        return jnp.repeat(jnp.asarray(x, jnp.float32), count, axis=0)

    drawn = np.asarray(jax.jit(causal_attention, static_argnums=4)(rows(q), rows(k), rows(v), seeds(count), rate))
    np.testing.assert_allclose(
        causal_attention(*map(jnp.float32, (q, k, v)), None, rate), plain_attention(q, k, v), atol=1e-5
    )
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / 2
    weights = np.exp(scores) * np.tril(np.ones((6, 6)))
    weights /= weights.sum(axis=-1, keepdims=True)
    variance = np.einsum("bhqk,bkhd->bqhd", weights**2, v**2) * rate / (1 - rate)
    error = np.sqrt(variance / count)
    assert (np.abs(drawn.mean(axis=0, keepdims=True) - plain_attention(q, k, v)) < 5 * error).all()
    np.testing.assert_allclose(drawn.var(axis=0, keepdims=True), variance, rtol=0.25)
