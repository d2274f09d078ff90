"""RAR-B on ImageNet (Tables 1 and 6 of the paper)."""

from rar_jax.config import imagenet


def get_config():
    return imagenet("rar_b")
