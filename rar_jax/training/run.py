"""A run, set up and checked: devices, data, the program, the evaluators and the checkpoints."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any

import jax
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh

from rar_jax.checkpoints.store import CheckpointStore
from rar_jax.config import Config, check_same_run, mesh_shape
from rar_jax.data.datasets import Datasets, open_datasets
from rar_jax.data.loader import DeviceBatches, train_iterator
from rar_jax.data.tokenizers import Tokenizer, load_tokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.sample_scores import DigitsScorer, GlyphScorer, SampleScorer, open_scorer
from rar_jax.images.plots import plot_scan_orders
from rar_jax.parallel.distributed import from_first, is_first, together
from rar_jax.parallel.mesh import host_rows, make_mesh, put_batch
from rar_jax.performance.costs import train_flops
from rar_jax.run_folder import CONFIG_FILE, check_folder, is_locked_by, lock, read_config
from rar_jax.training.curves import plot_run
from rar_jax.training.evaluators.evaluator import Evaluator, best_measure
from rar_jax.training.evaluators.heldout import HeldOutLosses
from rar_jax.training.evaluators.report import DigitsReport
from rar_jax.training.evaluators.samples import SampleGrid
from rar_jax.training.evaluators.sampling import StepSampler
from rar_jax.training.evaluators.scores import SampleScores
from rar_jax.training.finetune import check_sizes, load_init_from, start_from
from rar_jax.training.metrics import read_metrics
from rar_jax.training.program import Program, make_program
from rar_jax.training.state import TrainState

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, set up and checked. Nothing is compiled yet, and the state is not on the devices.

    Attributes:
      config: the run's config.
      folder: the run's folder.
      mesh: the devices.
      program: the model, the optimizer and the step.
      datasets: the training and the held-out data.
      evaluators: the evaluators, in the order in which they run.
      store: the checkpoints.
      lock: keeps other processes of this machine out of the folder until it is closed.
    """

    config: Config
    folder: epath.Path
    mesh: Mesh
    program: Program
    datasets: Datasets
    evaluators: list[Evaluator]
    store: CheckpointStore
    lock: contextlib.ExitStack | None

    def begin(self) -> tuple[TrainState, dict[str, Any]]:
        """Restores the newest readable checkpoint, or initialises the state of a new run.

        Returns:
          The state on the mesh, which the caller alone holds; and the position that was saved with it, empty in a new
          run.

        Raises:
          UserError: there are checkpoints and none can be read, or `config.init_from` cannot be read.
        """
        shardings = self.program.shardings(self.mesh)
        like = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            *(jax.eval_shape(self.program.init), shardings),
        )
        restored = self.store.restore_newest(like)
        if restored is not None:
            return restored
        state = jax.jit(self.program.init, out_shardings=shardings)()
        if self.config.init_from:
            state = start_from(self.config.init_from, self.config.model, state, shardings)
        _log.info("Parameters:\n%s", parameter_overview.get_parameter_overview(state.params, include_stats=False))
        if is_first():
            plot_scan_orders(self.folder / "figures" / "scan_orders.png", self.config.model.grid_side)
        return state, {}

    def batches(self, position: dict[str, Any] | None) -> DeviceBatches:
        """Returns the run's batches on the mesh, from a position (`DeviceBatches.get_state`) or from the start."""
        config = self.config
        batches = train_iterator(
            self.datasets.train,
            config.train.batch_size,
            config.total_steps,
            config.seed,
            host_rows(self.mesh, config.train.batch_size),
        )
        if position is not None:
            batches.set_state(position)
        return DeviceBatches(batches, lambda batch: put_batch(batch, self.mesh))

    @property
    def step_flops(self) -> float:
        """FLOPs of a step on each device: three times those of the forward pass."""
        return self.config.train.batch_size / self.mesh.size * train_flops(self.config.model)

    def draw_curves(self) -> None:
        """Draws the metrics that were logged so far."""
        plot_run(self.folder / "figures" / "curves.png", read_metrics(self.folder), self.config.anneal_steps)

    def close(self, hurried: bool = False) -> bool:
        """Waits for the last save and releases the folder.

        Args:
          hurried: see `CheckpointStore.close`.

        Returns:
          Whether the last save, if any, succeeded.
        """
        saved = self.store.close(hurried)
        if self.lock is not None:
            self.lock.close()
        return saved


def prepare(config: Config, folder: epath.PathLike, allow_config_change: Sequence[str] = ()) -> Run:
    """Sets up a run and checks everything that can be checked before a program is compiled.

    Args:
      config: the run's config.
      folder: the run's folder.
      allow_config_change: fields that may differ from the folder's config although they change what is trained.

    Raises:
      UserError: the config does not fit the devices, the data or the folder's run; or another process trains in the
        folder.
    """
    folder = epath.Path(folder)
    mesh = make_mesh(mesh_shape(config, jax.device_count()))
    with together():
        check_folder("workdir", folder)
        tokenizer = load_tokenizer(config)
        datasets = open_datasets(config, tokenizer)
    program = make_program(config)
    with together():
        if (folder / CONFIG_FILE).exists():
            for difference in check_same_run(config, read_config(folder), allow_config_change):
                _log.info("resumes with other settings: the run had %s", difference)
        scorer = _open_scorer(config)
        evaluators = _make_evaluators(config, folder, mesh, program, datasets, tokenizer, scorer)
        best = best_measure(config.checkpoint.best_metric, evaluators)
        _prepare_scorer(scorer)
    _check_init_from(config, folder)
    # Locked before the store is opened, which deletes leftovers of interrupted saves.
    held = _lock(folder)
    return Run(
        config=config,
        folder=folder,
        mesh=mesh,
        program=program,
        datasets=datasets,
        evaluators=evaluators,
        store=CheckpointStore(folder, config.checkpoint, best_is_max=best is not None and best.larger_is_better),
        lock=held,
    )


def _make_evaluators(
    config: Config,
    folder: epath.Path,
    mesh: Mesh,
    program: Program,
    datasets: Datasets,
    tokenizer: Tokenizer | None,
    scorer: SampleScorer | None,
) -> list[Evaluator]:
    sampler = StepSampler(config, program.model, mesh)
    evaluators = []
    if datasets.heldout is not None:
        evaluators.append(HeldOutLosses(config, program, mesh, datasets))
    if tokenizer is not None and config.eval.samples_per_class:
        evaluators.append(SampleGrid(config, sampler, tokenizer))
    if scorer is not None:
        evaluators.append(SampleScores(config, sampler, tokenizer, scorer))
    if config.eval.report_samples:
        evaluators.append(DigitsReport(config, sampler, tokenizer, folder))
    return evaluators


def _open_scorer(config: Config) -> SampleScorer | None:
    options = config.eval
    if not options.score_every:
        return None
    if not options.inception:
        return GlyphScorer(config.model.num_classes) if config.data.name == "glyphs" else DigitsScorer()
    try:
        return open_scorer("inception", options.inception, options.reference, config.data.image_size)
    except UserError as error:
        raise UserError(f"config.eval.inception and config.eval.reference: {error}") from None


def _prepare_scorer(scorer: SampleScorer | None) -> None:
    """Prepares the scorer now, so that an unusable reference image ends the run before its first step."""
    if scorer is None or not is_first():
        return
    try:
        scorer.prepare()
    except UserError as error:
        raise UserError(f"config.eval.inception and config.eval.reference: {error}") from None


def _check_init_from(config: Config, folder: epath.Path) -> None:
    """Checks that a new run can start from the weights that its config names.

    Raises:
      UserError: the weights cannot be read, or their sizes do not fit.
    """
    if not config.init_from:
        return
    with together():
        steps = CheckpointStore(folder).steps
    if not from_first(steps):
        with together():
            # `Run.begin` reads the weights again, so that they do not stay in host memory.
            check_sizes(config.model, load_init_from(config.init_from).model.config)


def _lock(folder: epath.Path) -> contextlib.ExitStack | None:
    """Locks the run's folder in the first process.

    Raises:
      UserError: another run trains there, or this process sees another folder than the first one.
    """
    with together():
        held = lock(folder) if is_first() else None
    holder = from_first(os.getpid())
    with together():
        if not is_locked_by(folder, holder):
            raise UserError(
                f"--workdir={folder} is not the same folder as in the first process: all processes must share one, on "
                "a network file system or gs://"
            )
    return held
