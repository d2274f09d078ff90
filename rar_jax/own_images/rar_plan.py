"""Plans the training of a RAR: its size, the batch and the number of epochs."""

from typing import NamedTuple

from rar_jax.config import Config, from_config_dict, imagenet
from rar_jax.errors import UserError
from rar_jax.models.sizes import ModelConfig, VQGANConfig
from rar_jax.own_images.planned import CHECKPOINTS, EVALUATIONS, Fields, Images, Machine, Part, duration, nested
from rar_jax.performance.costs import block_kernels, train_flops

# Epochs that a size must reach in the time to be chosen, and the limits of the epochs that are planned.
_WANTED_EPOCHS, _LEAST_EPOCHS, _MOST_EPOCHS = 20, 3, 400
# An epoch has about this many steps if the batch is within its limits.
_STEPS_AN_EPOCH = 250
_LEAST_BATCH, _MOST_BATCH = 8, 256
# From this number of epochs on the annealing window is the paper's, and below it is that of configs/digits.py.
_LONG = 100


class Size(NamedTuple):
    """A size to choose, and the learning rate that goes with it."""

    width: int
    depth: int
    num_heads: int
    learning_rate: float


# From RAR-B, with the paper's learning rate, to the model of configs/digits.py.
SIZES = (
    Size(768, 24, 16, 4e-4),
    Size(512, 12, 8, 6e-4),
    Size(256, 8, 4, 1e-3),
    Size(128, 4, 4, 2e-3),
    Size(64, 3, 2, 3e-3),
)


def rar_config(fields: Fields) -> Config:
    """Returns the config that planned fields make of the recipe."""
    return from_config_dict(nested(imagenet().to_dict(), fields))


def plan_rar(images: Images, machine: Machine, seconds: float, codes: VQGANConfig, folder: str) -> Part:
    """Plans the training of a RAR.

    Args:
      images, machine: what there is.
      seconds: time for the training, s.
      codes: the tokenizer's sizes.
      folder: folder that holds the tokenizer's run and the token records, `tokenizer` and `tokens`.

    Raises:
      UserError: the time is too short.
    """
    size, model = _choose(images, machine, seconds, codes)
    batch = _batch_size(images.num_train, machine)
    fields = _fields(images, machine, size, model, batch)
    fields["data"] |= {"path": f"{folder}/tokens/train", "eval_path": f"{folder}/tokens/heldout"}
    fields["data"] |= {"tokenizer": f"{folder}/tokenizer", "downsampling": codes.downsampling}
    # The recipe's epochs and window stand until the time of a step is known.
    step = machine.step_seconds(rar_config(fields))
    steps_per_epoch = images.num_train // batch
    epochs = min(int(seconds / (step * steps_per_epoch)), _MOST_EPOCHS)
    if epochs < _LEAST_EPOCHS:
        raise UserError(
            f"{_LEAST_EPOCHS} epochs of {images.num_train:,} images take "
            f"{duration(_LEAST_EPOCHS * step * steps_per_epoch)} on this machine, but there are {duration(seconds)} "
            "for them: set more --hours, a smaller --image_size, or fewer images"
        )
    start, end = (epochs // 2, 3 * epochs // 4) if epochs >= _LONG else (0, epochs // 2)
    fields["train"]["epochs"] = epochs
    fields["optimizer"]["warmup_epochs"] = min(epochs // 4, max(1, epochs // 10))
    fields["permutation"] = {"anneal_start_epoch": start, "anneal_end_epoch": end}
    fields["eval"]["every"] = -(-epochs * steps_per_epoch // EVALUATIONS)
    fields["checkpoint"] = {"every": -(-epochs * steps_per_epoch // CHECKPOINTS)}
    training = (
        f"Training: {epochs} epochs of {steps_per_epoch:,} steps of {batch} images take {1e3 * step:.3g} ms per step, "
        f"about {duration(epochs * steps_per_epoch * step)}. r falls from 1 to 0 between epochs {start} and {end}."
    )
    num_samples = max(8 * images.num_classes, 1000)
    # With guidance, an image takes two forward passes, a third of a training step each.
    sampling = f"Sampling: about {duration(step / batch * 2 / 3 * num_samples)} for {num_samples:,} images."
    return Part(fields, [_reason(images, model), training, sampling])


def _fields(images: Images, machine: Machine, size: Size, model: ModelConfig, batch: int) -> Fields:
    """Returns the fields that do not depend on the time of a step."""
    names = ("grid_side", "codebook_size", "num_classes", "width", "depth", "num_heads", "mlp_width")
    return {
        "": {"name": "rar"},
        "model": {name: getattr(model, name) for name in names},
        "data": {"num_images": images.num_train, "image_size": images.image_size},
        "train": {"batch_size": batch, "dtype": machine.dtype, "remat": "block", "log_every": 50},
        "optimizer": {"learning_rate": size.learning_rate, "b2": 0.99},
        "sample": {"guidance_scale": 4.0, "guidance_power": 1.0},
        "eval": {"num_images": 1000},
    }


def _parameters(model: ModelConfig) -> int:
    """Returns about how many parameters a network has: those of its blocks."""
    return model.depth * (block_kernels(model) + 6 * model.width**2)


def _choose(images: Images, machine: Machine, seconds: float, codes: VQGANConfig) -> tuple[Size, ModelConfig]:
    """Returns the largest size with enough training tokens and time, or else the smallest."""
    side = images.image_size // codes.downsampling
    for size in SIZES:
        shape = (size.width, size.depth, size.num_heads, 4 * size.width)
        model = ModelConfig(side, codes.codebook_size, images.num_classes, *shape)
        work = _WANTED_EPOCHS * images.num_train * train_flops(model)
        if _parameters(model) <= images.num_train * model.num_tokens and machine.seconds(work) <= seconds:
            break
    return size, model


def _batch_size(num_images: int, machine: Machine) -> int:
    wanted = min(max(num_images // _STEPS_AN_EPOCH, _LEAST_BATCH), _MOST_BATCH)
    # Rounded down to a power of two.
    return machine.batch_size(1 << (wanted.bit_length() - 1))


def _reason(images: Images, model: ModelConfig) -> str:
    tokens = images.num_train * model.num_tokens
    return (
        f"RAR: {model.depth} blocks of width {model.width}, {_parameters(model) / 1e6:.2g} million parameters for "
        f"{tokens / 1e6:.2g} million training tokens. It is the largest of {len(SIZES)} sizes with at most one "
        f"parameter per training token (RAR-B on ImageNet has 0.8) for which {_WANTED_EPOCHS} epochs fit in its share "
        "of the time, or else the smallest."
    )
