"""Plans the training of a tokenizer: its size, and the number of steps."""

import dataclasses

from rar_jax.data.image_check import patch_problem
from rar_jax.errors import UserError
from rar_jax.models.sizes import VQGANConfig
from rar_jax.own_images.planned import CHECKPOINTS, EVALUATIONS, Fields, Images, Machine, Part, duration, nested
from rar_jax.performance.costs import vqgan_train_flops
from rar_jax.schema import build_config
from rar_jax.tokenizer_config import TokenizerConfig, tokenizer

# Widths to choose from. The largest is that of the published tokenizer.
_WIDTHS = (128, 64, 32, 16)
# Multipliers of the widths of levels for patches of 4, 8 and 16 pixels. The last ones are the published ones.
_MULTIPLIERS = {4: (1, 2, 4), 8: (1, 2, 2, 4), 16: (1, 1, 2, 2, 4)}
# Codes along the side of an image, for which the patch is chosen, as in the glyphs.
_GRID_SIDE = 8
_LEVELS = (8, 8, 4, 4)
_BATCH = 8
# The glyphs' tokenizer is trained with 44,000 images. With much fewer no tokenizer is worth training.
_IMAGES, _LEAST_IMAGES = 44_000, 2000
_MOST_STEPS = 400_000


def tokenizer_config(fields: Fields) -> TokenizerConfig:
    """Returns the config that planned fields make of the recipe."""
    return build_config(nested(tokenizer().to_dict(), fields), TokenizerConfig)


def plan_tokenizer(
    images: Images,
    machine: Machine,
    seconds: float,
    published: tuple[str, VQGANConfig] | None = None,
    inception: str = "",
) -> Part:
    """Plans the training of a tokenizer.

    Args:
      images, machine: what there is.
      seconds: time for the training, s.
      published: path of the weights of a tokenizer to fit to the images, and their sizes; None to train from scratch.
      inception: path of the weights of the FID Inception network for the perceptual loss, or an empty text.

    Raises:
      UserError: the time is too short, or the published tokenizer does not fit the size of the images.
    """
    path, model = published or ("", _choose(images, machine, seconds))
    if problem := patch_problem(images.image_size, model.downsampling):
        raise UserError(problem)
    batch = machine.batch_size(_BATCH)
    fields = _fields(images, machine, model, batch)
    fields[""] |= {"init_from": path, "inception": inception}
    if published:
        fields["quantizer"] = {"kind": "vq"}
    step, reading = machine.step_seconds(tokenizer_config(fields)), machine.reading_seconds(images, batch)
    # Workers read while the accelerators train. Without workers, both share the cores.
    step = max(step, reading) if machine.workers else step + reading
    steps = min(int(seconds / step), _MOST_STEPS)
    if steps * batch < _LEAST_IMAGES:
        raise UserError(
            f"a tokenizer must see {_LEAST_IMAGES:,} images at least, which takes "
            f"{duration(_LEAST_IMAGES * step / batch)} on this machine, but there are {duration(seconds)} for it: set "
            f"more --hours, or a smaller --image_size{', or leave out --inception' if inception else ''}"
        )
    fields["train"]["steps"] = steps
    fields["eval"]["every"] = -(-steps // EVALUATIONS)
    fields["checkpoint"] = {"every": -(-steps // CHECKPOINTS)}
    side = images.image_size // model.downsampling
    why = f"{path} is fitted to the images" if published else _reason(model)
    line = (
        f"Tokenizer: {why}. It makes {side} x {side} codes of {model.codebook_size:,}. {steps:,} steps of {batch} "
        f"images take {1e3 * step:.3g} ms each, about {duration(steps * step)}; the images of a step are "
        f"read in {1e3 * reading:.3g} ms."
    )
    return Part(fields, [line])


def _fields(images: Images, machine: Machine, model: VQGANConfig, batch: int) -> Fields:
    """Returns the fields that do not depend on the time of a step."""
    data = {"images": images.train, "eval_images": images.heldout, "image_size": images.image_size}
    return {
        "": {"name": "tokenizer"},
        "model": dataclasses.asdict(model),
        "quantizer": {"kind": "fsq", "levels": _LEVELS},
        # The losses of configs/tokenizers/glyphs.py, and a rate that falls with the width from the one there.
        "loss": {"l1": 0.0, "l2": 5.0},
        "optimizer": {"learning_rate": 0.016 / model.width, "warmup_steps": 100},
        "train": {"batch_size": batch, "dtype": machine.dtype},
        "data": data | {"workers": machine.workers},
        "eval": {"num_images": 500},
    }


def chosen_patch(image_size: int) -> int:
    """Returns the side in pixels of the patch of a code, for a tokenizer that is trained on images of a size."""
    return next((patch for patch in _MULTIPLIERS if image_size <= _GRID_SIDE * patch), max(_MULTIPLIERS))


def _choose(images: Images, machine: Machine, seconds: float) -> VQGANConfig:
    """Returns the widest network that sees enough images in a time, or else the narrowest."""
    patch = chosen_patch(images.image_size)
    for width in _WIDTHS:
        num_blocks = 2 if width == max(_WIDTHS) else 1
        model = VQGANConfig(width, _MULTIPLIERS[patch], num_blocks, len(_LEVELS))
        if machine.seconds(_IMAGES * vqgan_train_flops(model, images.image_size)) <= seconds:
            break
    return model


def _reason(model: VQGANConfig) -> str:
    widths = ", ".join(map(str, _WIDTHS))
    return (
        f"trained from scratch with width {model.width}, the largest of {widths} that can see {_IMAGES:,} images in "
        "its share of the time, or else the smallest"
    )
