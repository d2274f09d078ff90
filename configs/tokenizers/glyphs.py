"""A small tokenizer for the embedded glyphs: 32 x 32 pixels to 8 x 8 codes. It trains in minutes on two CPU cores."""

from rar_jax.tokenizer_config import tokenizer


def get_config():
    config = tokenizer()
    config.name = "tokenizer_glyphs"
    config.model.update(width=16, multipliers=(1, 2, 4), num_blocks=1, latent_width=4, codebook_size=1024)
    config.quantizer.update(kind="fsq", levels=(8, 8, 4, 4))
    # PSNR counts squared errors. With the absolute error too, it is 1.3 dB lower after 1,500 steps.
    config.loss.update(l1=0.0, l2=5.0)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=100)
    config.train.update(batch_size=8, steps=5500)
    # Letters have no mirror images.
    config.data.update(name="glyphs", image_size=32, min_crop=1.0, flip=False)
    config.eval.update(every=5500, num_images=1008)
    config.checkpoint.every = 2750
    return config
