"""RAR-L on ImageNet (Tables 1 and 6 of the paper)."""

from rar_jax.config import imagenet


def get_config():
    config = imagenet()
    config.name = "rar_l"
    config.model.width = 1024
    config.model.depth = 24
    config.model.mlp_width = 4096
    config.sample.guidance_scale = 15.5
    config.sample.guidance_power = 2.5
    config.sample.temperature = 1.02
    return config
