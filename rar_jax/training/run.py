"""A run, set up and checked: devices, data, the program, and the checkpoint it goes on from."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any, TextIO

import jax
from etils import epath
from jax.sharding import Mesh

from rar_jax.checkpoints.store import CheckpointStore
from rar_jax.checkpoints.weights import Weights, load_weights
from rar_jax.config import Config, check_same_run, mesh_shape
from rar_jax.data.datasets import Datasets, open_datasets
from rar_jax.data.tokenizers import Tokenizer, load_tokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.sample_scores import DigitsScorer, SampleScorer, open_scorer
from rar_jax.parallel.distributed import from_first, is_first, together
from rar_jax.parallel.mesh import fetch, make_mesh
from rar_jax.run_folder import CONFIG_FILE, check_folder, is_locked_by, lock, read_config
from rar_jax.training.finetune import begin_from, check_sizes
from rar_jax.training.program import Program, make_program
from rar_jax.training.state import TrainState

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Run:
    """A run, set up and checked; nothing is compiled yet."""

    config: Config
    folder: epath.Path
    mesh: Mesh
    program: Program
    shardings: TrainState
    datasets: Datasets
    tokenizer: Tokenizer | None
    store: CheckpointStore
    # The newest checkpoint's state and position, or None in a new run.
    restored: tuple[TrainState, dict[str, Any]] | None
    # Keeps other processes of this machine out of the folder until it is closed.
    lock: TextIO | None

    # Scores samples along the way, where that is asked for.
    scorer: SampleScorer | None

    # What a new run begins with instead of random weights.
    init_from: Weights | None

    def start(self) -> TrainState:
        """The state of a new run, on the mesh."""
        state = jax.jit(self.program.init, out_shardings=self.shardings)()
        if self.init_from is None:
            return state
        initial = jax.tree.map(fetch, state.params)
        params, left = begin_from(
            self.program.model.config, initial, self.init_from.model.config, self.init_from.params
        )
        _log.info("begins with %s; initialised anew: %s", self.config.init_from, ", ".join(left) or "nothing")
        state = state.replace(params=jax.device_put(params, self.shardings.params))
        if state.ema is not None:
            state = state.replace(ema=jax.device_put(params, self.shardings.ema))
        self.init_from = None
        return state


def prepare(config: Config, folder: epath.PathLike, allow_config_change: Sequence[str] = ()) -> Run:
    """Sets a run up: devices, data, and the newest checkpoint that can be read, where there is one.

    Args:
      config: of the run.
      folder: of the run.
      allow_config_change: fields that may differ from the run so far although they change what is trained.

    Raises:
      UserError: the config does not fit the devices, the data or the run so far, another process trains in the folder,
        or there are checkpoints and none can be read.
    """
    folder = epath.Path(folder)
    mesh = make_mesh(mesh_shape(config, jax.device_count()))
    with together():
        check_folder("workdir", folder)
        tokenizer = load_tokenizer(config)
        datasets = open_datasets(config, tokenizer)
    program = make_program(config)
    shapes, state_shardings = jax.eval_shape(program.init), program.shardings(mesh)
    init_from = None
    with together():
        if (folder / CONFIG_FILE).exists():
            for difference in check_same_run(config, read_config(folder), allow_config_change):
                _log.info("goes on with other settings: the run had %s", difference)
        scorer = _open_scorer(config)
        steps = CheckpointStore(folder).steps if config.init_from else []
    if config.init_from and not from_first(steps):
        with together():
            init_from = _load_init_from(config.init_from)
            check_sizes(program.model.config, init_from.model.config)
    with together():
        held = lock(folder) if is_first() else None
    holder = from_first(os.getpid())
    with together():
        if not is_locked_by(folder, holder):
            raise UserError(
                f"--workdir={folder} is another folder here than in the first process: all processes need one that "
                "they share, on a network file system or gs://"
            )
    store = CheckpointStore(folder, config.checkpoint)
    like = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, state_shardings
    )
    restored = store.restore_newest(like)
    return Run(
        config=config,
        folder=folder,
        mesh=mesh,
        program=program,
        shardings=state_shardings,
        datasets=datasets,
        tokenizer=tokenizer,
        store=store,
        restored=restored,
        lock=held,
        scorer=scorer,
        init_from=init_from,
    )


def _load_init_from(path: str) -> Weights:
    """In host memory: the devices may not have room for it whole."""
    try:
        host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        platforms = os.environ.get("JAX_PLATFORMS")
        raise UserError(
            f"config.init_from={path} is read on the CPU, which JAX_PLATFORMS={platforms} leaves out: set it to "
            f"{platforms},cpu"
        ) from None
    try:
        return load_weights(path, "rar", sharding=host)
    except UserError as error:
        raise UserError(f"config.init_from={path}: {error}") from None


def _open_scorer(config: Config) -> SampleScorer | None:
    options = config.eval
    if not options.score_every:
        return None
    if not options.inception:
        return DigitsScorer()
    try:
        scorer = open_scorer("inception", options.inception, options.reference, config.data.image_size)
        # Before the first step: what is wrong with an image of the reference would end the run at its first scores.
        if is_first():
            scorer.prepare()
        return scorer
    except UserError as error:
        raise UserError(f"config.eval.inception and config.eval.reference: {error}") from None
