import jax.numpy as jnp
import numpy as np
import pytest
from attending import values_and_gradients

from rar_jax.models.attention import attention_weights, causal_attention, weighted_values
from rar_jax.models.dropout import drop

SHAPE = (2, 37, 3, 16)


def plain_attention(q, k, v, seeds, rate):
    """Computes causal attention with JAX's own derivative."""
    mask = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
    return weighted_values(drop(attention_weights(q, k, mask), seeds, rate), v)


@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 3e-6), ("bfloat16", 0.02)])
def test_the_values_and_gradients_are_those_of_plain_attention(dtype, error, dropped):
    ours = values_and_gradients(causal_attention, dtype, dropped, SHAPE)
    for a, b in zip(ours, values_and_gradients(plain_attention, "float32", dropped, SHAPE), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(np.float32(a), b, atol=error * np.abs(b).max())
