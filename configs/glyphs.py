"""A small RAR on the ten digits of the glyphs. Train its tokenizer first: configs/tokenizers/glyph_digits.py."""

from rar_jax.config import imagenet


def get_config():
    config = imagenet()
    config.name = "glyphs"
    config.model.update(grid_side=8, codebook_size=256, num_classes=10)
    config.model.update(width=128, depth=3, num_heads=4, mlp_width=512, dropout=0.0, attention_dropout=0.0)
    config.data.update(name="glyphs", tokenizer="runs/tokenizer_glyph_digits", num_images=20_000)
    config.data.update(image_size=32, downsampling=4)
    config.train.update(batch_size=16, epochs=3, dtype="float32", log_every=50)
    config.permutation.update(anneal_start_epoch=0, anneal_end_epoch=1)
    config.optimizer.update(learning_rate=2e-3, warmup_epochs=0, b2=0.99)
    config.sample.update(guidance_scale=4.0, guidance_power=0.3, temperature=0.7)
    config.eval.update(every=3750, num_images=1000, samples_per_class=10, report_samples=1000)
    config.checkpoint.every = 2500
    return config
