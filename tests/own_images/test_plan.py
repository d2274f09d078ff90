"""Plans with a given machine instead of a measured one."""

import runpy

import pytest

from rar_jax.config import from_config_dict, mesh_shape
from rar_jax.errors import UserError
from rar_jax.models.sizes import VQGANConfig
from rar_jax.own_images.plan import config_file, write_plan
from rar_jax.own_images.planned import Images, Machine, duration
from rar_jax.performance.costs import train_flops, vqgan_train_flops
from rar_jax.schema import build_config
from rar_jax.tokenizer_config import TokenizerConfig


def machine(flop_rate, devices=1, workers=3):
    """A machine that trains at 40% of its rate of products. A perceptual loss makes a step four times as long."""

    def step_seconds(config):
        if config.kind == "vqgan":
            flops = vqgan_train_flops(config.model, config.data.image_size) * (4 if config.inception else 1)
        else:
            flops = train_flops(config.model)
        return config.train.batch_size * flops / (0.4 * flop_rate)

    return Machine(f"{devices} devices", devices, flop_rate, "float32", 2, workers, step_seconds)


def images(count, size=32, classes=10, reading=0.0):
    return Images("split/train", "split/heldout", count, count // 10, classes, size, reading)


def planned(folder, *arguments, **options):
    """Writes a plan, and returns both configs and the text."""
    text = write_plan(folder, *arguments, **options)
    assert (folder / "plan.txt").read_text() == text + "\n"
    fields = [runpy.run_path(str(folder / f"{name}.py"))["get_config"]() for name in ("tokenizer", "rar")]
    return build_config(fields[0], TokenizerConfig), from_config_dict(fields[1]), text


def test_two_cores_get_small_networks_that_fit_the_time(tmp_path):
    folder = tmp_path / "new"
    tokenizer, rar, text = planned(folder, images(20_000), machine(150e9), 0.25)
    assert (tokenizer.model.width, tokenizer.model.multipliers, tokenizer.model.downsampling) == (16, (1, 2, 4), 4)
    assert tokenizer.data.workers == 3 and tokenizer.data.images == "split/train"
    assert tokenizer.data.eval_images == "split/heldout"
    assert (rar.model.width, rar.model.grid_side, rar.model.codebook_size, rar.train.batch_size) == (64, 8, 1024, 64)
    assert (rar.data.path, rar.data.eval_path) == (f"{folder}/tokens/train", f"{folder}/tokens/heldout")
    # By the times of the steps, both trainings take their share of a quarter of an hour.
    fake = machine(150e9)
    assert 0.98 < fake.step_seconds(tokenizer) * tokenizer.last_step / 300 <= 1
    assert 0.9 < fake.step_seconds(rar) * rar.last_step / 600 <= 1
    assert "Tokenizer: trained from scratch with width 16" in text and "RAR: 3 blocks of width 64" in text
    assert f"{rar.train.epochs} epochs of 312 steps of 64 images" in text


@pytest.mark.parametrize("workers", [0, 3])
def test_the_time_to_read_images_counts(tmp_path, workers):
    """Without workers the training waits for it; workers read ahead."""
    quick, _, _ = planned(tmp_path / "quick", images(20_000), machine(150e9, workers=workers), 0.25)
    # The workers, or else two cores, read eight images in half of the time of a step, and in twice this time.
    step = 300 / quick.last_step
    for share, slower in ((0.5, 1 if workers else 1.5), (2, 2 if workers else 3)):
        slow = images(20_000, reading=share * step / 8 * (workers or 2))
        plan, _, text = planned(tmp_path / f"slow_{share}", slow, machine(150e9, workers=workers), 0.25)
        assert quick.last_step / plan.last_step == pytest.approx(slower, rel=1e-2)
        assert f"the images of a step are read in {1e3 * share * step:.3g} ms" in text


def test_a_fast_machine_gets_large_networks_and_the_papers_window(tmp_path):
    tokenizer, rar, _ = planned(tmp_path, images(1_300_000, 256, 1000), machine(4e15, devices=8), 200)
    assert tokenizer.model == VQGANConfig(latent_width=4)
    assert (rar.model.width, rar.model.depth, rar.model.grid_side) == (768, 24, 16)
    epochs, window = rar.train.epochs, rar.permutation
    assert epochs >= 100 and window.anneal_start_epoch == epochs // 2 and window.anneal_end_epoch == 3 * epochs // 4
    assert rar.train.batch_size == 256 and mesh_shape(rar, 8) == (8, 1, 1)


def test_few_images_get_a_small_rar_whatever_the_time(tmp_path):
    _, rar, text = planned(tmp_path, images(1000, 64), machine(1e15), 100)
    # 64,000 training tokens are fewer than the parameters of any size.
    assert (rar.model.width, rar.model.grid_side, rar.train.epochs, rar.train.batch_size) == (64, 8, 400, 8)
    assert "0.22 million parameters for 0.064 million training tokens" in text


def test_the_batch_divides_over_the_devices(tmp_path):
    tokenizer, rar, _ = planned(tmp_path, images(5000), machine(1e13, devices=6), 1)
    assert tokenizer.train.batch_size == 12 and rar.train.batch_size % 6 == 0


def test_published_weights_are_fitted(tmp_path):
    published = ("vqgan.bin", VQGANConfig())
    tokenizer, rar, text = planned(
        tmp_path, images(5000, 64), machine(1e15), 1, published=published, inception="inception.pth"
    )
    assert tokenizer.init_from == "vqgan.bin" and tokenizer.inception == "inception.pth"
    assert tokenizer.quantizer.kind == "vq" and tokenizer.model == VQGANConfig()
    assert rar.model.grid_side == 4 and "vqgan.bin is fitted to the images" in text


def test_the_perceptual_loss_takes_its_time(tmp_path):
    steps, texts = [], []
    for inception in ("", "inception.pth"):
        tokenizer, _, text = planned(tmp_path, images(5000), machine(150e9), 1, inception=inception)
        steps.append(tokenizer.train.steps)
        texts.append(next(line for line in text.splitlines() if line.startswith("Tokenization")))
    assert steps[0] == pytest.approx(4 * steps[1], rel=0.01)
    # Encoding needs no Inception network.
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("size", "hours", "count", "message"),
    [
        (256, 0.1, 5000, "a tokenizer must see 2,000 images at least, which takes "),
        (32, 0.001, 5000, "a tokenizer must see 2,000 images at least"),
        (32, 0.2, 10_000_000, "3 epochs of 10,000,000 images take "),
        (30, 1, 5000, "--image_size=30 is not a multiple of 4, the downsampling of the tokenizer"),
    ],
)
def test_what_cannot_be_planned_is_refused(tmp_path, size, hours, count, message):
    with pytest.raises(UserError, match=message):
        write_plan(tmp_path, images(count, size), machine(150e9), hours)
    assert not (tmp_path / "rar.py").exists()


def test_config_file():
    text = config_file("rar_jax.config", "imagenet", {"": {"name": "a"}, "train": {"epochs": 3, "dtype": "float32"}})
    assert text.splitlines()[2:] == [
        "from rar_jax.config import imagenet",
        "",
        "",
        "def get_config():",
        "    config = imagenet()",
        "    config.name = 'a'",
        "    config.train.update(epochs=3, dtype='float32')",
        "    return config",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(42, "42 s"), (240, "4 min"), (9000, "2:30 h")])
def test_duration(seconds, text):
    assert duration(seconds) == text
