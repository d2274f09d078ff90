import jax
import numpy as np

from rar_jax.sampling.cached import prepare
from rar_jax.sampling.likelihood import token_log_likelihoods
from rar_jax.training.step import token_losses


def test_log_likelihoods_are_the_losses_of_training(golden, golden_model):
    orders = golden["orders"].astype(np.int32)
    tokens = golden["tokens"].astype(np.int32)
    examples = {
        "visited": np.take_along_axis(tokens, orders, axis=1),
        "label": golden.labels.astype(np.int32),
        "order": orders,
    }
    losses, _ = jax.jit(lambda p, e: token_losses(golden_model, p, e))(golden.params, examples)
    params = jax.jit(prepare, static_argnums=(0, 2))(golden_model, golden.params, True)
    found = jax.jit(token_log_likelihoods, static_argnums=0)(golden_model, params, examples["label"], tokens, orders)
    np.testing.assert_allclose(np.take_along_axis(np.asarray(found), orders, axis=1), -losses, atol=2e-5, rtol=0)
