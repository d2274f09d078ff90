"""RAR-B on ImageNet (Tables 1 and 6 of the paper)."""

from rar_jax.config import imagenet


def get_config():
    config = imagenet()
    config.name = "rar_b"
    config.model.width = 768
    config.model.depth = 24
    config.model.mlp_width = 3072
    config.sample.guidance_scale = 16.0
    config.sample.guidance_power = 2.75
    config.sample.temperature = 1.0
    return config
