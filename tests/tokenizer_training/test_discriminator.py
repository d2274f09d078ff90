import jax
import numpy as np

from rar_jax.tokenizer_training.discriminator import Discriminator


def test_images_are_judged_one_by_one_and_in_patches():
    model = Discriminator(width=8, layers=2)
    images = np.random.default_rng(0).random((2, 32, 32, 3)).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(0), images)
    logits = jax.jit(model.apply)(params, images)
    assert logits.shape == (2, 8, 8)
    # One image does not change what is said of the other one.
    alone = jax.jit(model.apply)(params, images[:1])
    np.testing.assert_allclose(alone, logits[:1], atol=1e-5)
    widths = [params["params"][f"conv_{i}"]["kernel"].shape[-1] for i in range(3)]
    assert widths == [8, 16, 32]
