"""The config of a run: all fields with their defaults, meanings and limits, the recipes, and rules between fields.

A config file returns an `ml_collections.ConfigDict`, made by a recipe below. `from_config_dict` turns it into the
frozen dataclasses that the rest of the code uses. `schema` has what this config and that of a tokenizer have in common.
The sections of the network and of sampling are in `models.sizes` and `sampling.options`. No network is imported.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import ml_collections

from rar_jax import schema
from rar_jax.errors import UserError
from rar_jax.fields import setting
from rar_jax.models.sizes import ATTENTION, REMAT, ModelConfig
from rar_jax.orders import SHAPES, scan_order
from rar_jax.sampling.options import MAX_SEED, Options, SampleConfig

# Fields that may change when a run resumes, because they affect neither its losses nor its weights.
_FREE_TO_CHANGE = re.compile(
    r"name|init_from|(mesh|sample|eval|checkpoint)\..*|train\.(stop_step|log_every|max_skipped|profile_step|remat|attention|deterministic)"
    r"|data\.(path|eval_path|tokenizer)"
)
# Fields that decide the shapes of the parameters.
_SHAPES = re.compile(r"model\.(?!.*dropout).*")
DATA_NAMES = ("records", "digits", "glyphs", "synthetic")
DTYPES = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class PermutationConfig:
    """The annealed random permutation. Table 2 of the paper varies the window, Table 3 the scan order."""

    scan_order: str = setting(
        "row_major",
        "Scan order that training anneals to: row_major, alternate, z_curve, subsample, spiral_out or spiral_in.",
    )
    anneal_start_epoch: int = setting(200, "Epoch until which every image is permuted (r = 1).", at_least=0)
    anneal_end_epoch: int = setting(300, "Epoch from which r has its final value.", at_least=0)
    final_randomness: float = setting(
        0.0,
        "Value of r from anneal_end_epoch on. The paper has 0. A model that samples or edits in any order needs more, "
        "such as 0.5.",
        at_least=0,
        at_most=1,
    )
    shape: str = setting("linear", "Shape of the decay of r. The paper has linear.", one_of=SHAPES)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate (Table 6)."""

    learning_rate: float = setting(4e-4, "Peak learning rate.", at_least=0, below=math.inf)
    end_learning_rate: float = setting(1e-5, "Learning rate at the last step of the cosine.", at_least=0)
    warmup_epochs: int = setting(100, "Epochs of linear warm-up from 0.", at_least=0)
    b1: float = setting(0.9, "Decay of the first moment.", at_least=0, below=1)
    b2: float = setting(0.96, "Decay of the second moment.", at_least=0, below=1)
    eps: float = setting(1e-8, "Added to the root of the second moment.", above=0)
    weight_decay: float = setting(0.03, "Decoupled weight decay (`training.optimizer.DECAYED`).", at_least=0)
    clip_norm: float = setting(1.0, "Largest global norm of the gradient. A large value never clips.", above=0)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Settings of the training loop, whatever it trains."""

    stop_step: int = setting(0, "Step to stop at, without changing the schedules. 0 runs to the end.", at_least=0)
    max_skipped: int = setting(
        10,
        "Number of consecutive skipped updates at which the run ends. Updates that are not finite are skipped.",
        at_least=1,
    )
    deterministic: bool = setting(
        False, "Make a GPU repeat a run bit for bit, at some cost. CPUs and TPUs always do.",
    )  # fmt: skip
    log_every: int = setting(100, "Steps between log lines.", at_least=1)
    profile_step: int = setting(0, "First of three steps to trace. 0: none.", at_least=0)


@dataclasses.dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """The run. An epoch has floor(data.num_images / batch_size) steps."""

    batch_size: int = setting(2048, "Global batch size, over all devices, hosts and microbatches.", at_least=1)
    epochs: int = setting(400, "Epochs that the schedules span. They count source images, not crops.", at_least=1)
    label_dropout: float = setting(
        0.1, "Probability that a label is replaced by the null class.", at_least=0, at_most=1
    )
    accumulation: int = setting(1, "Microbatches whose gradients are averaged for one update.", at_least=1)
    dtype: str = setting("bfloat16", "Compute dtype. Parameters are float32.", one_of=DTYPES)
    remat: str = setting(
        "none",
        "What a block keeps for the backward pass, which recomputes the rest: none keeps all values, dots the outputs "
        "of linear layers and attention, and block only its input.",
        one_of=REMAT,
    )
    attention: str = setting(
        "xla", "Attention of the training step. pallas: kernels for NVIDIA GPUs.", one_of=ATTENTION
    )
    ema_decay: float = setting(
        0.0,
        "Decay of the moving average of the parameters, which is shorter at first. 0: none.",
        at_least=0,
        below=1,
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh. One axis may be -1, which takes the remaining devices.

    The batch is sharded over all axes, parameters and optimizer state over `fsdp` and `tensor` (`parallel.partition`).
    """

    data: int = setting(-1, "Devices that hold the same shard of the parameters.")
    fsdp: int = setting(1, "Devices that shard the parameters and gather each kernel when it is used.")
    tensor: int = setting(
        1,
        "Devices that shard the parameters and divide attention heads and MLP units. Keep them within a node or slice.",
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The source of the tokens."""

    name: str = setting(
        "records",
        "records: token records at `path`. digits: embedded, made on first use. glyphs: embedded, made on first use "
        "with `tokenizer`. synthetic: random tokens.",
        one_of=DATA_NAMES,
    )
    path: str = setting(
        "", "Folder of token records. For embedded data, the folder to keep them in; empty: the user's cache folder."
    )
    eval_path: str = setting("", "Folder of held-out token records. Embedded and synthetic data have their own.")
    num_images: int = setting(1_281_167, "Number of source images, which is the length of an epoch.", at_least=1)
    tokenizer: str = setting(
        "none", "Tokenizer that decodes codes to images: MaskGIT-VQGAN weights, digits, or none to draw no images."
    )
    image_size: int = setting(256, "Side of an image in pixels.", at_least=1)
    downsampling: int = setting(16, "Side in pixels of the patch that one token represents.", at_least=1)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluations during the run and at its end (`training.evaluators`)."""

    every: int = setting(5000, "Steps between evaluations of held-out losses and sample grids.", at_least=1)
    num_images: int = setting(
        10_000,
        "Number of held-out images, and of training images, whose losses are measured. 0: as many as are held out.",
        at_least=0,
    )
    samples_per_class: int = setting(
        4, "Images of each of up to ten classes in the sample grid. 0: no grid.", at_least=0
    )
    report_samples: int = setting(
        0, "Samples that are scored against the real digits or glyphs after the last step. 0: none.", at_least=0
    )
    score_every: int = setting(
        0, "Steps between scores of samples, with and without guidance (Figure 4 b and c). 0: never.", at_least=0
    )
    score_images: int = setting(5000, "Samples that are scored, equally many of each class.", at_least=1)
    inception: str = setting("", "Weights of the FID Inception network. Empty: only digits and glyphs can be scored.")
    reference: str = setting("", "Statistics or images to score samples against: an .npz or a folder of images.")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints are saved and kept. The last step is always saved."""

    every: int = setting(5000, "Steps between checkpoints.", at_least=1)
    keep: int = setting(3, "Newest checkpoints to keep.", at_least=1)
    keep_every: int = setting(0, "Also keep the checkpoints of every multiple of this step. 0: none.", at_least=0)
    best_metric: str = setting(
        "",
        "Measure whose best checkpoint is kept, such as heldout/target_loss. One of `every` and the interval of that "
        "measure must be a multiple of the other.",
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment; see `schema`."""

    kind: ClassVar[str] = "rar"
    name: str = setting("rar_b", "Name of the experiment, and of its folder in runs/.")
    seed: int = setting(0, "Seed of every random draw of the run.", at_least=0, at_most=MAX_SEED)
    init_from: str = setting("", "Weights to start from (`checkpoints.weights`). Empty: random weights.")
    model: ModelConfig = setting(ModelConfig(), "The network.")
    permutation: PermutationConfig = setting(PermutationConfig(), "The annealed permutation.")
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "AdamW.")
    train: TrainConfig = setting(TrainConfig(), "The run.")
    mesh: MeshConfig = setting(MeshConfig(), "The devices.")
    data: DataConfig = setting(DataConfig(), "The data.")
    sample: SampleConfig = setting(SampleConfig(), "Sampling.")
    eval: EvalConfig = setting(EvalConfig(), "Evaluation during the run.")
    checkpoint: CheckpointConfig = setting(CheckpointConfig(), "Checkpoints.")

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch: floor(images / batch size)."""
        return self.data.num_images // self.train.batch_size

    @property
    def total_steps(self) -> int:
        """Steps that the schedules span."""
        return self.train.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        """Step at which the run ends."""
        return min(self.train.stop_step or self.total_steps, self.total_steps)

    @property
    def anneal_steps(self) -> tuple[int, int]:
        """Steps between which r falls from 1 to its final value."""
        window = self.permutation
        return window.anneal_start_epoch * self.steps_per_epoch, window.anneal_end_epoch * self.steps_per_epoch

    def may_change(self, path: str) -> bool:
        """Returns whether a field may change when a run with this config resumes."""
        # The tokens of the glyphs are made by the tokenizer.
        made_by_tokenizer = path == "data.tokenizer" and self.data.name == "glyphs"
        return bool(_FREE_TO_CHANGE.fullmatch(path)) and not made_by_tokenizer

    def changes_state(self, path: str, old: Any, new: Any) -> bool:
        """Returns whether a new value of a field changes the arrays of the train state, or their shapes."""
        return bool(_SHAPES.fullmatch(path)) or (path == "train.ema_decay" and bool(old) != bool(new))

    def rules(self) -> Iterator[tuple[bool, str]]:
        """Yields the rules between fields: whether each holds, and the message if it does not."""
        return _rules(self)

    def run_rules(self) -> Iterator[tuple[bool, str]]:
        """Yields the rules for starting and resuming a run; see `schema.check_run`."""
        yield from checkpoint_rules(self.checkpoint)
        try:
            sample_options(self).plan(self.model)
        except UserError as error:
            yield False, f"config.sample: {error}"


# The sizes of Table 1, each with the sampling options of its published results.
RAR_SIZES = {
    "rar_b": (ModelConfig(width=768, depth=24, mlp_width=3072), SampleConfig("pow_cosine", 16.0, 2.75, 1.0)),
    "rar_l": (ModelConfig(width=1024, depth=24, mlp_width=4096), SampleConfig("pow_cosine", 15.5, 2.5, 1.02)),
    "rar_xl": (ModelConfig(width=1280, depth=32, mlp_width=5120), SampleConfig("pow_cosine", 6.9, 1.5, 1.02)),
    "rar_xxl": (ModelConfig(width=1408, depth=40, mlp_width=6144), SampleConfig("pow_cosine", 8.0, 1.2, 1.02)),
}


def imagenet(size: str = "rar_b") -> ml_collections.ConfigDict:
    """Returns the paper's recipe for ImageNet at 256 x 256 (Table 6), with a model of `RAR_SIZES`."""
    model, sample = RAR_SIZES[size]
    return schema.to_config_dict(Config(name=size, model=model, sample=sample))


def from_config_dict(fields: ml_collections.ConfigDict | dict[str, Any]) -> Config:
    """Returns the frozen form of a RAR's config, checked; see `schema.build_config`."""
    return schema.build_config(fields, Config)


def without_data(fields: ml_collections.ConfigDict | None) -> Config:
    """Returns the config of a benchmark, which reads no data and draws no images.

    Raises:
      UserError: there is no config, or see `from_config_dict`.
    """
    if fields is None:
        raise UserError("name an experiment with --config=configs/NAME.py")
    fields = fields.copy_and_resolve_references()
    # The config of a tokenizer has no such field, and is refused below.
    if "tokenizer" in fields.data:
        fields.data.update(name="synthetic", tokenizer="none")
        fields.eval.update(report_samples=0, score_every=0, inception="", reference="")
    return from_config_dict(fields)


def sample_options(config: Config) -> Options:
    """Returns the sampling options of a run: its sampling section and its target scan order.

    Raises:
      UserError: an option is out of range.
    """
    return Options(scan_order=config.permutation.scan_order, **dataclasses.asdict(config.sample))


def _rules(config: Config) -> Iterator[tuple[bool, str]]:
    """See `Config.rules`."""
    model, train, data, window = config.model, config.train, config.data, config.permutation
    yield (
        model.width % model.num_heads == 0,
        f"config.model.width={model.width} must be divisible by config.model.num_heads={model.num_heads}",
    )
    try:
        scan_order(window.scan_order, model.grid_side)
    except UserError as error:
        yield False, f"config.permutation.scan_order: {error}"
    yield (
        window.anneal_start_epoch <= window.anneal_end_epoch,
        f"config.permutation.anneal_start_epoch={window.anneal_start_epoch} must be from 0 to "
        f"config.permutation.anneal_end_epoch={window.anneal_end_epoch}",
    )
    yield (
        train.batch_size <= data.num_images,
        f"config.train.batch_size={train.batch_size} is more than config.data.num_images={data.num_images}: "
        "no epoch would have a step",
    )
    yield (
        config.optimizer.warmup_epochs < train.epochs,
        f"config.optimizer.warmup_epochs={config.optimizer.warmup_epochs} must be below "
        f"config.train.epochs={train.epochs}",
    )
    yield (
        train.batch_size % train.accumulation == 0,
        f"config.train.batch_size={train.batch_size} must be divisible by "
        f"config.train.accumulation={train.accumulation}",
    )
    yield (
        data.image_size == model.grid_side * data.downsampling,
        f"config.data.image_size={data.image_size} must be config.model.grid_side={model.grid_side} times "
        f"config.data.downsampling={data.downsampling}, which is {model.grid_side * data.downsampling}",
    )
    yield (
        data.name != "records" or bool(data.path),
        "config.data.path is empty: name a folder of token records with --config.data.path=FOLDER "
        "(python -m rar_jax tokenize makes one), or try the real size on synthetic tokens with "
        "--config.data.name=synthetic",
    )
    yield (
        data.name != "glyphs" or data.tokenizer != "none",
        "config.data.tokenizer=none: config.data.name=glyphs needs the tokenizer that makes its tokens; name its "
        "weights with --config.data.tokenizer=WEIGHTS",
    )
    yield from _score_rules(config)


def checkpoint_rules(checkpoint: CheckpointConfig) -> Iterator[tuple[bool, str]]:
    """Yields the rules between the fields that say which checkpoints are saved and kept."""
    yield (
        checkpoint.keep_every % checkpoint.every == 0,
        f"config.checkpoint.keep_every={checkpoint.keep_every} must be a multiple of "
        f"config.checkpoint.every={checkpoint.every}: steps between are not saved",
    )


def _score_rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Yields the rules about scores of samples."""
    evaluation, data = config.eval, config.data
    # Whether token records hold glyphs is known when they are opened (`training.run`).
    glyphs = data.name in ("glyphs", "records") and data.image_size == 32
    yield (
        not evaluation.report_samples or data.name == "digits" or glyphs,
        f"config.eval.report_samples={evaluation.report_samples} scores samples of the digits or the glyphs: with "
        f"config.data.name={data.name} and config.data.image_size={data.image_size} it must be 0",
    )
    yield (
        not evaluation.report_samples
        or (evaluation.report_samples > 1 and (data.tokenizer == "digits" or (glyphs and data.tokenizer != "none"))),
        f"config.eval.report_samples={evaluation.report_samples} must be 0 or at least 2, and needs "
        f"config.data.tokenizer={'WEIGHTS' if glyphs else 'digits'}, not {data.tokenizer}",
    )
    yield (
        bool(evaluation.score_every) or not (evaluation.inception or evaluation.reference),
        f"config.eval.inception={evaluation.inception!r} and config.eval.reference={evaluation.reference!r} score "
        "samples during the run: set how often with config.eval.score_every, or remove them",
    )
    if not evaluation.score_every:
        return
    own = glyphs or (data.name, data.tokenizer) == ("digits", "digits")
    given = [bool(evaluation.inception), bool(evaluation.reference)]
    scored = f"config.eval.score_every={evaluation.score_every} scores samples: "
    yield evaluation.score_images > 1, f"config.eval.score_images={evaluation.score_images} must be at least 2"
    yield data.tokenizer != "none", scored + "name the tokenizer that decodes them with config.data.tokenizer"
    yield (
        all(given) or (own and not any(given)),
        scored + "name Inception weights with config.eval.inception and a reference with "
        "config.eval.reference"
        + (f", or neither for the scores of the {'glyphs' if glyphs else 'digits'}" if own else ""),
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def mesh_shape(config: Config, num_devices: int) -> tuple[int, int, int]:
    """Returns the sizes of the mesh's axes (data, fsdp, tensor) on a number of devices.

    Raises:
      UserError: the product of the sizes is not the number of devices, or the batch, a width or the number of heads is
        not divisible by the axes that shard it.
    """
    sizes = dataclasses.asdict(config.mesh)
    given = ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
    rest = [axis for axis, size in sizes.items() if size == -1]
    _require(
        all(size == -1 or size >= 1 for size in sizes.values()),
        f"{given}: each must be at least 1, or -1 for the remaining devices",
    )
    _require(len(rest) <= 1, f"{given}: only one axis can be -1")
    known = math.prod(size for size in sizes.values() if size != -1)
    _require(
        num_devices % known == 0 and (bool(rest) or known == num_devices),
        f"{given}: the product must be the number of devices, {num_devices}",
    )
    data, fsdp, tensor = (num_devices // known if size == -1 else size for size in sizes.values())
    microbatch = config.train.batch_size // config.train.accumulation
    _require(
        microbatch % num_devices == 0,
        f"config.train.batch_size={config.train.batch_size} over config.train.accumulation={config.train.accumulation} "
        f"is {microbatch} images per microbatch, which must be divisible by the {num_devices} devices",
    )
    model = config.model
    for name, axes, size in (
        ("width", "fsdp and tensor axes", fsdp * tensor),
        ("mlp_width", "tensor axis", tensor),
        ("num_heads", "tensor axis", tensor),
    ):
        value = getattr(model, name)
        _require(value % size == 0, f"config.model.{name}={value} must be divisible by the {axes} of {size} devices")
    return data, fsdp, tensor
