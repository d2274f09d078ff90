"""RAR-XL on ImageNet (Tables 1 and 6 of the paper)."""

from rar_jax.config import imagenet


def get_config():
    config = imagenet()
    config.name = "rar_xl"
    config.model.width = 1280
    config.model.depth = 32
    config.model.mlp_width = 5120
    config.sample.guidance_scale = 6.9
    config.sample.guidance_power = 1.5
    config.sample.temperature = 1.02
    return config
