"""The schema of a run in one place: every field, its default, and what is checked before anything is compiled.

A config file returns an `ml_collections.ConfigDict` made by a recipe below. At the edge it becomes the frozen
dataclasses of this file, which is what the rest of the code sees.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import ml_collections

from rar_jax.models.rar import RAR, REMAT_POLICIES
from rar_jax.orders import scan_order
from rar_jax.sampling.options import Options

DATA_NAMES = ("records", "digits", "synthetic")
DTYPES = ("bfloat16", "float32")
# Before the names of scores of samples, as they are logged.
SCORE = "score/"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network; the fields of `models.rar.RAR` (Table 1 of the paper). The defaults are RAR-B."""

    grid_side: int = 16
    codebook_size: int = 1024
    num_classes: int = 1000
    width: int = 768
    depth: int = 24
    num_heads: int = 16
    mlp_width: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    target_aware: bool = True


@dataclasses.dataclass(frozen=True)
class PermutationConfig:
    """The annealed random permutation (the paper's Table 2 varies the window, Table 4 the scan order)."""

    scan_order: str = "row_major"
    anneal_start_epoch: int = 200
    anneal_end_epoch: int = 300


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule (Table 6)."""

    learning_rate: float = 4e-4
    end_learning_rate: float = 1e-5
    warmup_epochs: int = 100
    b1: float = 0.9
    b2: float = 0.96
    eps: float = 1e-8
    weight_decay: float = 0.03
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run. Epochs count source images: an epoch has floor(data.num_images / batch_size) steps.

    `batch_size` is global: over all devices, hosts and `accumulation` microbatches. `stop_step` ends the run early
    without changing its schedules (0: at the end). `remat` says what the backward pass keeps of a block. An update that
    is not finite is left out; `max_skipped` of them in a row end the run. `deterministic` makes a GPU repeat a run bit
    for bit, at some cost; CPUs and TPUs do so anyway.
    """

    batch_size: int = 2048
    epochs: int = 400
    stop_step: int = 0
    label_dropout: float = 0.1
    accumulation: int = 1
    dtype: str = "bfloat16"
    remat: str = "none"
    ema_decay: float = 0.0
    max_skipped: int = 10
    deterministic: bool = False
    log_every: int = 100
    profile_step: int = 0


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 takes the rest.

    The batch is split over all axes; parameters and optimizer state are split over `fsdp` and `tensor`. The devices
    along `tensor` share the heads and hidden units of each product, and need a fast network (`parallel.partition`).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from.

    `name` is records (token records at `path`, held-out ones at `eval_path`), digits (embedded; made on first use) or
    synthetic (made-up tokens). `tokenizer` turns codes into pictures: a file of MaskGIT-VQGAN weights, digits, or none
    to go without. `downsampling` is the side in pixels of the patch that one token stands for.
    """

    name: str = "records"
    path: str = ""
    eval_path: str = ""
    num_images: int = 1_281_167
    tokenizer: str = "none"
    image_size: int = 256
    downsampling: int = 16


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Sampling; the fields of `sampling.options.Options`. A guidance_scale of 1 is no guidance."""

    guidance: str = "pow_cosine"
    guidance_scale: float = 16.0
    guidance_power: float = 2.75
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What is looked at along the way, every `every` steps and at the end.

    `num_images` held-out images, and as many of the training set, give losses in the target order and in random
    order (0: all held-out ones). `samples_per_class` images of up to ten classes make a grid. After the last step
    `report_samples` images are scored against the real ones (the digits only; 0: none).

    Every `score_every` steps and at the end (0: never) `score_images` samples, as many of each class, are scored with
    and without guidance: FID and Inception Score by the weights `inception` against `reference`, an .npz or a folder
    (the paper's Figure 4 b and c). Without these the digits are scored by their pixels, and by an SVM.
    """

    every: int = 5000
    num_images: int = 10_000
    samples_per_class: int = 4
    report_samples: int = 0
    score_every: int = 0
    score_images: int = 5000
    inception: str = ""
    reference: str = ""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Saved every `every` steps and at the end.

    The newest `keep` stay, those of every `keep_every`-th step (0: none), and the one with the best `best_metric`, such
    as heldout/target_loss or score/fid_guided, smallest or largest by `best_mode` (none where it is empty). A metric
    belongs to the checkpoints of steps that it was measured at.
    """

    every: int = 5000
    keep: int = 3
    keep_every: int = 0
    best_metric: str = ""
    best_mode: str = "min"


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment. `init_from` names weights to begin with (see `checkpoints.load`); random ones by default."""

    name: str = "rar_b"
    seed: int = 0
    init_from: str = ""
    model: ModelConfig = ModelConfig()
    permutation: PermutationConfig = PermutationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    sample: SampleConfig = SampleConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def steps_per_epoch(self) -> int:
        return self.data.num_images // self.train.batch_size

    @property
    def total_steps(self) -> int:
        """The steps that the schedules span."""
        return self.train.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        """The step at which the run ends."""
        return min(self.train.stop_step or self.total_steps, self.total_steps)

    @property
    def anneal_steps(self) -> tuple[int, int]:
        """The steps between which r falls from 1 to 0."""
        window = self.permutation
        return window.anneal_start_epoch * self.steps_per_epoch, window.anneal_end_epoch * self.steps_per_epoch


# The sizes of Table 1, each with the sampling options of its published results.
RAR_SIZES = {
    "rar_b": (ModelConfig(width=768, depth=24, mlp_width=3072), SampleConfig("pow_cosine", 16.0, 2.75, 1.0)),
    "rar_l": (ModelConfig(width=1024, depth=24, mlp_width=4096), SampleConfig("pow_cosine", 15.5, 2.5, 1.02)),
    "rar_xl": (ModelConfig(width=1280, depth=32, mlp_width=5120), SampleConfig("pow_cosine", 6.9, 1.5, 1.02)),
    "rar_xxl": (ModelConfig(width=1408, depth=40, mlp_width=6144), SampleConfig("pow_cosine", 8.0, 1.2, 1.02)),
}


def imagenet(size: str = "rar_b") -> ml_collections.ConfigDict:
    """The recipe of the paper for ImageNet at 256 x 256 (Table 6), with a model of `RAR_SIZES`."""
    model, sample = RAR_SIZES[size]
    return to_config_dict(Config(name=size, model=model, sample=sample))


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """The mutable form, for config files and overrides. Unknown fields cannot be added to it."""
    return ml_collections.ConfigDict(dataclasses.asdict(config)).lock()


def from_config_dict(fields: ml_collections.ConfigDict | dict[str, Any]) -> Config:
    """The frozen form, checked.

    Raises:
      ValueError: a field is unknown, missing, of the wrong type, out of range or at odds with another; the message
        names it, its value and the way out.
    """
    if isinstance(fields, ml_collections.ConfigDict):
        fields = fields.to_dict()
    config = _build(Config, fields, "")
    check(config)
    return config


def without_data(fields: ml_collections.ConfigDict | None) -> Config:
    """The config of a benchmark: no data is read and no pictures are made.

    Raises:
      ValueError: as `from_config_dict`, or there is no config.
    """
    if fields is None:
        raise ValueError("name an experiment with --config=configs/NAME.py")
    fields = fields.copy_and_resolve_references()
    fields.data.update(name="synthetic", tokenizer="none")
    fields.eval.update(report_samples=0, score_every=0, inception="", reference="")
    fields.checkpoint.best_metric = ""
    return from_config_dict(fields)


def make_model(config: Config, dtype: str | None = None) -> RAR:
    """The network of a config, computing in `dtype` (by default the one it trains in)."""
    fields = dataclasses.asdict(config.model)
    return RAR(**fields, remat=config.train.remat, dtype=jnp.dtype(dtype or config.train.dtype))


def sample_options(config: Config) -> Options:
    """How the images of a config are sampled, in the scan order that it trains for.

    Raises:
      ValueError: an option is out of range.
    """
    return Options(scan_order=config.permutation.scan_order, **dataclasses.asdict(config.sample))


def field_paths(cls: type = Config, prefix: str = "") -> Iterator[str]:
    """The dotted name of every field, sections included."""
    for field in dataclasses.fields(cls):
        yield prefix + field.name
        if dataclasses.is_dataclass(field.type):
            yield from field_paths(field.type, f"{prefix}{field.name}.")


def unknown_field(path: str) -> str:
    """What to say of a field that does not exist: the nearest names."""
    leaf = path.rsplit(".", 1)[-1]
    paths = list(field_paths())
    near = difflib.get_close_matches(path, paths, n=3)
    near += [p for p in paths if difflib.get_close_matches(leaf, [p.rsplit(".", 1)[-1]], n=1) and p not in near]
    return f"config has no field {path!r}; " + (f"nearest: {', '.join(near[:3])}" if near else "see rar_jax/config.py")


def _build(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"config.{prefix.rstrip('.')}={values!r} must be a section of fields")
    names = {field.name for field in dataclasses.fields(cls)}
    for name in values:
        if name not in names:
            raise ValueError(unknown_field(prefix + name))
    built = {}
    for field in dataclasses.fields(cls):
        path = prefix + field.name
        if field.name not in values:
            raise ValueError(f"config.{path} is missing: start from a recipe in rar_jax/config.py")
        value = values[field.name]
        if dataclasses.is_dataclass(field.type):
            value = _build(field.type, value, f"{path}.")
        elif field.type is float and type(value) is int:
            value = float(value)
        elif type(value) is not field.type:
            raise ValueError(f"config.{path}={value!r} must be of type {field.type.__name__}")
        built[field.name] = value
    return cls(**built)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _at_least(config: Config, minimum: float, *paths: str) -> None:
    for path in paths:
        section, name = path.split(".")
        value = getattr(getattr(config, section), name)
        _require(value >= minimum, f"config.{path}={value} must be at least {minimum}")


def _one_of(path: str, value: str, choices) -> None:
    _require(value in choices, f"config.{path}={value!r} must be one of {', '.join(choices)}")


def check(config: Config) -> None:
    """Checks everything that can be known without data or devices.

    Raises:
      ValueError: see `from_config_dict`.
    """
    model, train, data, window = config.model, config.train, config.data, config.permutation
    _at_least(config, 1, "model.grid_side", "model.codebook_size", "model.num_classes", "model.width", "model.depth")
    _at_least(config, 1, "model.num_heads", "model.mlp_width", "train.batch_size", "train.epochs", "train.accumulation")
    _at_least(config, 1, "train.log_every", "data.num_images", "data.image_size", "data.downsampling")
    _at_least(config, 1, "eval.every", "checkpoint.every", "checkpoint.keep", "train.max_skipped")
    _at_least(config, 0, "checkpoint.keep_every")
    _at_least(
        config,
        0,
        "train.stop_step",
        "train.profile_step",
        "eval.num_images",
        "eval.samples_per_class",
        "eval.report_samples",
        "eval.score_every",
    )
    _at_least(config, 0, "optimizer.learning_rate", "optimizer.end_learning_rate", "optimizer.warmup_epochs")
    _at_least(config, 0, "optimizer.weight_decay", "optimizer.eps")
    for path in ("model.dropout", "model.attention_dropout", "train.ema_decay", "optimizer.b1", "optimizer.b2"):
        section, name = path.split(".")
        value = getattr(getattr(config, section), name)
        _require(0 <= value < 1, f"config.{path}={value} must be at least 0 and below 1")
    _require(0 <= train.label_dropout <= 1, f"config.train.label_dropout={train.label_dropout} must be from 0 to 1")
    _require(
        config.optimizer.clip_norm > 0,
        f"config.optimizer.clip_norm={config.optimizer.clip_norm} must be above 0; a large one never clips",
    )
    _one_of("train.dtype", train.dtype, DTYPES)
    _one_of("train.remat", train.remat, REMAT_POLICIES)
    _one_of("checkpoint.best_mode", config.checkpoint.best_mode, ("min", "max"))
    _one_of("data.name", data.name, DATA_NAMES)
    _require(
        model.width % model.num_heads == 0,
        f"config.model.width={model.width} must be divisible by config.model.num_heads={model.num_heads}",
    )
    try:
        scan_order(window.scan_order, model.grid_side)
    except ValueError as error:
        raise ValueError(f"config.permutation.scan_order: {error}") from None
    try:
        sample_options(config)
    except ValueError as error:
        raise ValueError(f"config.sample.{error}") from None
    _require(
        0 <= window.anneal_start_epoch <= window.anneal_end_epoch,
        f"config.permutation.anneal_start_epoch={window.anneal_start_epoch} must be from 0 to "
        f"config.permutation.anneal_end_epoch={window.anneal_end_epoch}",
    )
    _require(
        train.batch_size <= data.num_images,
        f"config.train.batch_size={train.batch_size} is more than config.data.num_images={data.num_images}: "
        "no epoch would have a step",
    )
    _require(
        config.optimizer.warmup_epochs < train.epochs,
        f"config.optimizer.warmup_epochs={config.optimizer.warmup_epochs} must be below "
        f"config.train.epochs={train.epochs}",
    )
    _require(
        train.batch_size % train.accumulation == 0,
        f"config.train.batch_size={train.batch_size} must be divisible by "
        f"config.train.accumulation={train.accumulation}",
    )
    _require(
        data.image_size == model.grid_side * data.downsampling,
        f"config.data.image_size={data.image_size} must be config.model.grid_side={model.grid_side} times "
        f"config.data.downsampling={data.downsampling}, which is {model.grid_side * data.downsampling}",
    )
    _require(
        data.name != "records" or bool(data.path),
        "config.data.path is empty: name a folder of token records with --config.data.path=FOLDER "
        "(python -m rar_jax.tokenize makes one), or try the real size on made-up tokens with "
        "--config.data.name=synthetic",
    )
    _require(
        not config.eval.report_samples or data.name == "digits",
        f"config.eval.report_samples={config.eval.report_samples} scores samples of the digits: "
        f"with config.data.name={data.name} it must be 0",
    )
    _require(
        not config.eval.report_samples or (config.eval.report_samples > 1 and data.tokenizer == "digits"),
        f"config.eval.report_samples={config.eval.report_samples} must be 0 or at least 2, and needs "
        f"config.data.tokenizer=digits, not {data.tokenizer}",
    )
    _require(
        bool(config.eval.score_every) or not (config.eval.inception or config.eval.reference),
        f"config.eval.inception={config.eval.inception!r} and config.eval.reference={config.eval.reference!r} score "
        "samples along the way: say how often with config.eval.score_every, or leave them out",
    )
    best, measured = config.checkpoint.best_metric, measured_names(config)
    choices = ", ".join(measured) or "empty, as none is (see config.data.eval_path and config.eval.score_every)"
    _require(
        not best or best in measured,
        f"config.checkpoint.best_metric={best!r} is not measured in this run: it must be {choices}",
    )
    if config.eval.score_every:
        pixels = (data.name, data.tokenizer) == ("digits", "digits")
        given = [bool(config.eval.inception), bool(config.eval.reference)]
        scored = f"config.eval.score_every={config.eval.score_every} scores samples: "
        _at_least(config, 2, "eval.score_images")
        _require(data.tokenizer != "none", scored + "name what makes images of them with config.data.tokenizer")
        _require(
            all(given) or (pixels and not any(given)),
            scored + "name Inception weights with config.eval.inception and what to compare with in "
            "config.eval.reference" + (", or neither for the pixels of the digits" if pixels else ""),
        )


def measured_names(config: Config) -> list[str]:
    """The names under which a run logs what a checkpoint can be the best by."""
    names = []
    if config.data.name != "records" or config.data.eval_path:
        for split in ("heldout", "train"):
            names += [f"{split}/{order}_{what}" for order in ("target", "random") for what in ("loss", "accuracy")]
    if config.eval.score_every:
        scores = ("fid", "inception_score") if config.eval.inception else ("frechet_pixels", "svm_accuracy")
        names += [f"{SCORE}{score}_{guidance}" for score in scores for guidance in ("guided", "unguided")]
    return names


# What a run that goes on may change: these decide neither its losses nor its samples' weights.
_FREE_TO_CHANGE = re.compile(
    r"name|init_from|(mesh|sample|eval|checkpoint)\..*|train\.(stop_step|log_every|max_skipped|profile_step|remat|deterministic)"
    r"|data\.(path|eval_path|tokenizer)"
)


def flat_fields(config: Config) -> dict[str, Any]:
    """Every field by its dotted name."""
    return flax.traverse_util.flatten_dict(dataclasses.asdict(config), sep=".")


def check_same_run(config: Config, saved: Config, allowed: Sequence[str] = ()) -> list[str]:
    """Compares a config with the one that a run's folder was begun with.

    Args:
      config: of the run now.
      saved: of the run so far.
      allowed: fields that may differ although they change what is trained.

    Returns:
      The differences that there may be, each with both values.

    Raises:
      ValueError: a field that would change what is trained differs; every such field is named with both values.
    """

    ours, theirs = flat_fields(config), flat_fields(saved)
    different = [path for path in ours if ours[path] != theirs[path]]
    refused = [path for path in different if not _FREE_TO_CHANGE.fullmatch(path) and path not in allowed]
    said = {path: f"config.{path}={theirs[path]!r}, not {ours[path]!r}" for path in different}
    _require(
        not refused,
        "this folder's run has "
        + ", ".join(said[path] for path in refused)
        + ": train in another --workdir, go on with the run's own values, or, if it is meant, add "
        + " ".join(f"--allow_config_change={path}" for path in refused),
    )
    return list(said.values())


def mesh_shape(config: Config, num_devices: int) -> tuple[int, int, int]:
    """The sizes of the mesh's axes (data, fsdp, tensor) on so many devices.

    Raises:
      ValueError: the axes do not multiply to the devices, or the batch, a width or the heads do not divide over them.
    """
    sizes = dataclasses.asdict(config.mesh)
    given = ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
    rest = [axis for axis, size in sizes.items() if size == -1]
    _require(
        all(size == -1 or size >= 1 for size in sizes.values()), f"{given}: an axis is -1 (the rest) or at least 1"
    )
    _require(len(rest) <= 1, f"{given}: only one axis can be -1 (the rest)")
    known = math.prod(size for size in sizes.values() if size != -1)
    _require(
        num_devices % known == 0 and (bool(rest) or known == num_devices),
        f"{given} do not multiply to the {num_devices} devices here",
    )
    data, fsdp, tensor = (num_devices // known if size == -1 else size for size in sizes.values())
    microbatch = config.train.batch_size // config.train.accumulation
    _require(
        microbatch % num_devices == 0,
        f"config.train.batch_size={config.train.batch_size} over config.train.accumulation={config.train.accumulation} "
        f"is {microbatch} images a microbatch, which must be divisible by the {num_devices} devices",
    )
    model = config.model
    for name, axes, size in (
        ("width", "fsdp and tensor axes", fsdp * tensor),
        ("mlp_width", "fsdp axis", fsdp),
        ("mlp_width", "tensor axis", tensor),
        ("num_heads", "tensor axis", tensor),
    ):
        value = getattr(model, name)
        _require(value % size == 0, f"config.model.{name}={value} must be divisible by the {axes} of {size} devices")
    return data, fsdp, tensor
