"""A small RAR on the embedded handwritten digits. It trains with the whole method in minutes on two CPU cores."""

from rar_jax.config import imagenet


def get_config():
    config = imagenet()
    config.name = "digits"
    config.model.update(grid_side=8, codebook_size=17, num_classes=10)
    config.model.update(width=64, depth=3, num_heads=2, mlp_width=256, dropout=0.0, attention_dropout=0.0)
    config.data.update(name="digits", tokenizer="digits", num_images=1437, image_size=8, downsampling=1)
    config.train.update(batch_size=16, epochs=18, dtype="float32", remat="block", log_every=20)
    config.permutation.update(anneal_start_epoch=0, anneal_end_epoch=9)
    config.optimizer.update(learning_rate=3e-3, warmup_epochs=2, b2=0.99)
    config.sample.update(guidance_scale=2.0, guidance_power=2.0)
    config.eval.update(every=267, num_images=0, samples_per_class=10, report_samples=1000)
    config.eval.update(score_every=267, score_images=200)
    config.checkpoint.every = 534
    return config
