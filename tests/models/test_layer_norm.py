import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rar_jax.models.layer_norm import EPSILON, LayerNorm


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 2e-6), (jnp.bfloat16, 0.01)])
@pytest.mark.parametrize("learned", [True, False])
def test_the_values_and_gradients_are_those_of_flax(dtype, error, learned):
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 * rng.standard_normal((2, 5, 48)) + 1, dtype)
    params = {name: jnp.float32(rng.standard_normal(48)) for name in ("scale", "bias")} if learned else {}
    weights = rng.standard_normal(x.shape)
    plain = nn.LayerNorm(epsilon=EPSILON, use_scale=learned, use_bias=learned, dtype=dtype)

    def values_and_gradients(module):
        def product(x, params):
            out = module.apply({"params": params}, x)
            return (out * weights).sum(), out

        (_, out), gradients = jax.value_and_grad(product, argnums=(0, 1), has_aux=True)(x, params)
        return out, gradients

    ours, theirs = values_and_gradients(LayerNorm(learned)), values_and_gradients(plain)
    # Decoding must not change by a bit.
    np.testing.assert_array_equal(ours[0], theirs[0])
    for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
        assert a.dtype == b.dtype
        scale = np.abs(np.float32(b)).max()
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=error * scale)
