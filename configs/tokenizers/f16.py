"""The f16 tokenizer for images of 256 x 256 pixels, with the sizes of the published one and 1,024 codes of FSQ."""

from rar_jax.tokenizer_config import tokenizer


def get_config():
    config = tokenizer()
    config.name = "tokenizer_f16"
    config.model.update(latent_width=4, codebook_size=1024)
    config.quantizer.update(kind="fsq", levels=(8, 8, 4, 4))
    config.loss.adversarial = 0.5
    config.train.dtype = "bfloat16"
    config.data.workers = 8
    return config
