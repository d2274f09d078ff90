"""The digits, trained until raster order saturates: the base of the studies in configs/studies/.

Dropout, learning rate, weight decay and warm-up are the best of those that configs/studies/setting.py tries for RAR.
"""

from rar_jax.schema import config_beside


def get_config():
    config = config_beside(__file__, "digits.py")
    config.name = "digits_long"
    config.model.update(dropout=0.1, attention_dropout=0.1)
    config.train.update(epochs=100, remat="none", log_every=89)
    config.permutation.update(anneal_start_epoch=50, anneal_end_epoch=75)
    config.optimizer.update(learning_rate=1e-3, warmup_epochs=25, weight_decay=1.0)
    # The other 180 of the 360 held-out digits are the test images of a study.
    config.eval.update(every=445, num_images=180, samples_per_class=0, report_samples=0, score_every=0)
    config.checkpoint.update(every=445, keep=1)
    return config
