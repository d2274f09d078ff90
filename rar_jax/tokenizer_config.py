"""The config of a tokenizer's training: all fields with their defaults, meanings and limits, and rules between fields.

It is like `config`, which has the config of a RAR. No network is imported.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import ml_collections

from rar_jax import schema
from rar_jax.config import DTYPES, CheckpointConfig, LoopConfig, checkpoint_rules
from rar_jax.errors import UserError
from rar_jax.fields import setting
from rar_jax.models.sizes import VQGANConfig, num_groups
from rar_jax.sampling.options import MAX_SEED

# Fields that may change when a run resumes, because they affect neither its losses nor its weights.
_FREE_TO_CHANGE = re.compile(
    r"name|init_from|(eval|checkpoint)\..*|train\.(stop_step|log_every|max_skipped|profile_step|deterministic)"
    r"|data\.(images|data_dir|workers)"
)
# Fields that decide the shapes of the parameters.
_SHAPES = re.compile(r"model\.(?!groups).*|loss\.discriminator_.*")
DATA_NAMES = ("folder", "tfds", "glyphs")
QUANTIZERS = ("fsq", "vq")


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """How latents become codes (`tokenizer_training.quantizers`)."""

    kind: str = setting(
        "fsq",
        "fsq: a fixed grid of codes, which needs no state. vq: learned codes, as the published tokenizer has.",
        one_of=QUANTIZERS,
    )
    levels: tuple = setting((8, 8, 4, 4), "For fsq, the number of values of each entry of a latent.")
    commitment: float = setting(
        0.25, "Weight of the loss that keeps latents near codes; for fsq, within the grid.", at_least=0
    )
    restart_every: int = setting(100, "For vq, steps between restarts of dead codes. 0: never.", at_least=0)
    restart_below: float = setting(
        0.05, "For vq, use below which a code is dead, as a fraction of the mean use.", at_least=0, below=1
    )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The losses, of images with values from 0 to 1 (`tokenizer_training.losses`)."""

    l1: float = setting(1.0, "Weight of the mean absolute error.", at_least=0)
    l2: float = setting(1.0, "Weight of the mean squared error.", at_least=0)
    perceptual: float = setting(
        1.0, "Weight of the distance between Inception features, when `config.inception` is set.", at_least=0
    )
    adversarial: float = setting(
        0.0,
        "Size of the discriminator's gradient at the decoder's last layer, relative to that of the other losses. 0: no "
        "discriminator.",
        at_least=0,
    )
    adversarial_start: int = setting(20_000, "Step from which the discriminator is trained and used.", at_least=0)
    discriminator_width: int = setting(64, "Channels of the discriminator's first layer.", at_least=1)
    discriminator_layers: int = setting(3, "Layers of the discriminator that halve the side.", at_least=1)


@dataclasses.dataclass(frozen=True)
class TokenizerOptimizerConfig:
    """Adam and its learning rate, for the tokenizer and for the discriminator."""

    learning_rate: float = setting(1e-4, "Peak learning rate.", at_least=0, below=math.inf)
    end_learning_rate: float = setting(1e-5, "Learning rate at the last step of the cosine.", at_least=0)
    warmup_steps: int = setting(1000, "Steps of linear warm-up from 0.", at_least=0)
    b1: float = setting(0.9, "Decay of the first moment.", at_least=0, below=1)
    b2: float = setting(0.95, "Decay of the second moment.", at_least=0, below=1)
    clip_norm: float = setting(1.0, "Largest global norm of the gradient. A large value never clips.", above=0)


@dataclasses.dataclass(frozen=True)
class TokenizerTrainConfig(LoopConfig):
    """The run."""

    batch_size: int = setting(128, "Global batch size, over all devices and hosts.", at_least=1)
    steps: int = setting(400_000, "Steps that the schedules span.", at_least=1)
    ema_decay: float = setting(
        0.999,
        "Decay of the moving average of the weights, which the tokenizer consists of. It is shorter at first.",
        at_least=0,
        below=1,
    )
    dtype: str = setting("float32", "Compute dtype. Parameters are float32.", one_of=DTYPES)


@dataclasses.dataclass(frozen=True)
class ImageDataConfig:
    """The images."""

    name: str = setting(
        "folder",
        "folder: the images below `images`. tfds: the TFDS data set `images`. glyphs: embedded.",
        one_of=DATA_NAMES,
    )
    images: str = setting("", "Folder of images, with or without class folders, or name of a TFDS data set.")
    eval_images: str = setting(
        "", "Folder or TFDS split of held-out images. Empty: the fraction `holdout` of the images is held out."
    )
    holdout: float = setting(0.02, "Fraction of the images that is held out without `eval_images`.", above=0, below=1)
    split: str = setting("train", "Split of the TFDS data set.")
    data_dir: str = setting("", "Folder in which the TFDS data set was prepared. Empty: TFDS's own.")
    num_classes: int = setting(36, "Classes of the glyphs: 10 (digits) or 36 (and capital letters).", at_least=1)
    image_size: int = setting(256, "Side of an image in pixels.", at_least=1)
    min_crop: float = setting(
        0.8, "Least side of a random crop, as a fraction of the image's short side. 1: whole short side.",
        above=0, at_most=1,
    )  # fmt: skip
    flip: bool = setting(True, "Mirror every image with probability one half.")
    workers: int = setting(0, "Processes that decode images. 0: the training process decodes them.", at_least=0)


@dataclasses.dataclass(frozen=True)
class TokenizerEvalConfig:
    """Evaluations during the run and at its end (`tokenizer_training.evaluators`)."""

    every: int = setting(5000, "Steps between evaluations of held-out images.", at_least=1)
    num_images: int = setting(5000, "Held-out images that are scored. 0: all.", at_least=0)
    grid_images: int = setting(16, "Images of the grid of originals above their reconstructions.", at_least=1)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """One experiment; see `schema`."""

    kind: ClassVar[str] = "vqgan"
    name: str = setting("tokenizer_f16", "Name of the experiment, and of its folder in runs/.")
    seed: int = setting(0, "Seed of every random draw of the run.", at_least=0, at_most=MAX_SEED)
    init_from: str = setting("", "Weights to start from (`checkpoints.weights`). Empty: random weights.")
    inception: str = setting("", "Weights of the FID Inception network, for the perceptual loss and rFID.")
    model: VQGANConfig = setting(VQGANConfig(), "The network.")
    quantizer: QuantizerConfig = setting(QuantizerConfig(), "The quantiser.")
    loss: LossConfig = setting(LossConfig(), "The losses.")
    optimizer: TokenizerOptimizerConfig = setting(TokenizerOptimizerConfig(), "Adam.")
    train: TokenizerTrainConfig = setting(TokenizerTrainConfig(), "The run.")
    data: ImageDataConfig = setting(ImageDataConfig(), "The images.")
    eval: TokenizerEvalConfig = setting(TokenizerEvalConfig(), "Evaluation during the run.")
    checkpoint: CheckpointConfig = setting(CheckpointConfig(), "Checkpoints.")

    @property
    def last_step(self) -> int:
        """Step at which the run ends."""
        return min(self.train.stop_step or self.train.steps, self.train.steps)

    def may_change(self, path: str) -> bool:
        """Returns whether a field may change when a run with this config resumes."""
        return bool(_FREE_TO_CHANGE.fullmatch(path))

    def changes_state(self, path: str, old: Any, new: Any) -> bool:
        """Returns whether a new value of a field changes the arrays of the train state, or their shapes."""
        return bool(_SHAPES.fullmatch(path)) or (path == "loss.adversarial" and bool(old) != bool(new))

    def rules(self) -> Iterator[tuple[bool, str]]:
        """Yields the rules between fields: whether each holds, and the message if it does not."""
        model, quantizer, data = self.model, self.quantizer, self.data
        for name, sizes, least in (
            ("model.multipliers", model.multipliers, 1),
            ("quantizer.levels", quantizer.levels, 2),
        ):
            yield (
                bool(sizes) and all(type(size) is int and size >= least for size in sizes),
                f"config.{name}={sizes} must be whole numbers of at least {least}",
            )
        yield from _norm_rules(model)
        if quantizer.kind == "fsq":
            yield (
                (len(quantizer.levels), math.prod(quantizer.levels)) == (model.latent_width, model.codebook_size),
                f"config.quantizer.levels={quantizer.levels} makes {math.prod(quantizer.levels)} codes of "
                f"{len(quantizer.levels)} numbers: config.model.codebook_size={model.codebook_size} and "
                f"config.model.latent_width={model.latent_width} must be equal to these",
            )
        yield (
            data.image_size % model.downsampling == 0,
            f"config.data.image_size={data.image_size} must be a multiple of {model.downsampling}, the patch of a code "
            f"by config.model.multipliers={model.multipliers}",
        )
        width = self.loss.discriminator_width
        # Layers have up to eight times the width.
        channels = [width * factor for factor in (2, 4, 8)]
        yield (
            all(each % num_groups(0, each) == 0 for each in channels),
            f"config.loss.discriminator_width={width} makes layers of {channels} channels, which do not divide into "
            "groups: choose a power of two",
        )
        yield (
            self.optimizer.warmup_steps < self.train.steps,
            f"config.optimizer.warmup_steps={self.optimizer.warmup_steps} must be below "
            f"config.train.steps={self.train.steps}",
        )
        yield (
            bool(data.images) or data.name == "glyphs",
            "config.data.images is empty: name the images with --images=DIR",
        )
        yield (
            not data.images or data.name != "glyphs",
            f"config.data.images={data.images!r} has no effect with config.data.name={data.name}: remove it",
        )

    def run_rules(self) -> Iterator[tuple[bool, str]]:
        """Yields the rules for starting and resuming a run; see `schema.check_run`."""
        yield from checkpoint_rules(self.checkpoint)
        data, loss = self.data, self.loss
        yield (
            not loss.adversarial or loss.adversarial_start < self.train.steps,
            f"config.loss.adversarial={loss.adversarial} has no effect before config.loss.adversarial_start="
            f"{loss.adversarial_start}, but the run has {self.train.steps} steps: start earlier, or set it to 0",
        )
        yield (
            not data.eval_images or data.name != "glyphs",
            f"config.data.eval_images={data.eval_images!r} has no effect with config.data.name={data.name}: remove it",
        )


def _norm_rules(model: VQGANConfig) -> Iterator[tuple[bool, str]]:
    """Yields the rules about the groups of normalisations."""
    for channels in model.level_widths:
        groups = num_groups(model.groups, channels)
        yield (
            channels % groups == 0,
            f"config.model.width={model.width} with config.model.multipliers={model.multipliers} has a level of "
            f"{channels} channels, which do not divide into {groups} groups (config.model.groups={model.groups})",
        )


def without_images(fields: ml_collections.ConfigDict | None) -> TokenizerConfig:
    """Returns the config of a benchmark of a tokenizer's training step, which reads no images and no other weights.

    Raises:
      UserError: there is no config, or see `schema.build_config`.
    """
    if fields is None:
        raise UserError("name a tokenizer with --config=configs/tokenizers/NAME.py")
    fields = fields.copy_and_resolve_references()
    # The rules of the config want a folder. The config of a RAR has no such field, and is refused below.
    if "images" in fields.data:
        fields.data.update(name="folder", images="not read")
        fields.inception = ""
        # The steps that are timed are the first ones, and most steps of a run have the discriminator.
        fields.loss.adversarial_start = 0
    return schema.build_config(fields, TokenizerConfig)


def tokenizer() -> ml_collections.ConfigDict:
    """Returns the default recipe: an f16 tokenizer for images of 256 x 256 pixels."""
    return schema.to_config_dict(TokenizerConfig())
