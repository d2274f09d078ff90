"""RAR-XXL on ImageNet (Tables 1 and 6 of the paper)."""

from rar_jax.config import imagenet


def get_config():
    config = imagenet()
    config.name = "rar_xxl"
    config.model.width = 1408
    config.model.depth = 40
    config.model.mlp_width = 6144
    config.sample.guidance_scale = 8.0
    config.sample.guidance_power = 1.2
    config.sample.temperature = 1.02
    return config
