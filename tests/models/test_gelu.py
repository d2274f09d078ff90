import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from rar_jax.models.gelu import gelu


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 2e-6), (jnp.bfloat16, 0.01)])
def test_the_values_and_derivatives_are_exact(dtype, error):
    x = jnp.linspace(-9, 9, 2001).astype(dtype)
    exact = np.asarray(x, np.float64)
    distribution = (1 + erf(exact / np.sqrt(2))) / 2
    density = np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(np.float32(gelu(x)), exact * distribution, atol=error, rtol=error)
    derivatives = jax.vmap(jax.grad(gelu))(x)
    assert derivatives.dtype == dtype
    np.testing.assert_allclose(np.float32(derivatives), distribution + exact * density, atol=error, rtol=error)
