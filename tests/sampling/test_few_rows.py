import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rar_jax.models.attention import attention_weights, weighted_values
from rar_jax.models.rar import Linear
from rar_jax.sampling.few_rows import attend_few_rows, multiply_transposed


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 7, 8, 15])
def test_a_transposed_kernel_gives_the_same_product(rows):
    x = jax.random.normal(jax.random.key(0), (2, rows, 12))
    linear = Linear((3, 5), jnp.float32, ("in", None, None))
    params = linear.init(jax.random.key(1), x)["params"]
    params = params | {"bias": jnp.arange(15.0)}
    expected = linear.apply({"params": params}, x)
    transposed = {"transposed_kernel": params["kernel"].T, "bias": params["bias"]}
    with nn.intercept_methods(multiply_transposed):
        found = linear.apply({"params": transposed}, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mask_rank", [2, 4])
def test_attention_is_that_of_the_model(dtype, mask_rank):
    sequences, queries, places, heads, width = 3, 5, 11, 2, 4
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (sequences, queries, heads, width), dtype)
    k, v = (jax.random.normal(key, (sequences, heads, places, width), dtype) for key in keys[1:3])
    mask = jax.random.bernoulli(keys[3], 0.5, (sequences, 1, queries, places)[4 - mask_rank :]).at[..., 0].set(True)
    expected = weighted_values(attention_weights(q, k.swapaxes(1, 2), mask), v.swapaxes(1, 2))
    found = attend_few_rows(q, k, v, mask)
    assert found.shape == q.shape and found.dtype == q.dtype
    np.testing.assert_allclose(
        found.astype(jnp.float32), expected.astype(jnp.float32), atol=1e-6 if dtype == "float32" else 2e-2
    )
