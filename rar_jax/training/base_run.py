"""What every run has in common, whatever it trains: the folder, the checkpoints, and what the training loop asks of it.

`training.run` has the run of a RAR, and `tokenizer_training.run` that of a tokenizer.
"""

import abc
import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh

from rar_jax.checkpoints.store import Best, CheckpointStore
from rar_jax.data.loader import DeviceBatches
from rar_jax.errors import UserError
from rar_jax.parallel.distributed import from_first, is_first, together
from rar_jax.parallel.mesh import put_batch
from rar_jax.run_folder import CONFIG_FILE, is_locked_by, lock, read_config, this_process
from rar_jax.schema import allowed_changes, check_same_run
from rar_jax.training.base_program import BaseProgram, State
from rar_jax.training.evaluators.evaluator import Evaluator, Measure
from rar_jax.training.metrics import points, read_metrics

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BaseRun(abc.ABC):
    """A run, set up and checked. Nothing is compiled yet, and the state is not on the devices.

    Attributes:
      config: the run's config. The loop reads its name, its last step and the sections train and checkpoint.
      folder: the run's folder.
      mesh: the devices.
      program: the step and the initial state.
      evaluators: the evaluators, in the order in which they run.
      store: the checkpoints.
      lock: keeps other processes of this machine out of the folder until it is closed.
      steps_per_epoch: steps of an epoch.
      step_flops: FLOPs of a step on each device.
    """

    config: Any
    folder: epath.Path
    mesh: Mesh
    program: BaseProgram
    evaluators: list[Evaluator]
    store: CheckpointStore
    lock: contextlib.ExitStack
    steps_per_epoch: int
    step_flops: float

    def begin(self) -> tuple[State, dict[str, Any]]:
        """Restores the newest readable checkpoint, or initialises the state of a new run.

        Returns:
          The state on the mesh, which the caller alone holds; and the position that was saved with it, empty in a new
          run.

        Raises:
          UserError: there are checkpoints and none can be read, the folder holds converted weights, or
            `config.init_from` cannot be read.
        """
        if self.store.has_weights_only():
            raise UserError(
                f"--workdir={self.folder} holds converted weights and no run: train in another folder, with "
                f"--config.init_from={self.folder}"
            )
        shardings = self.program.shardings(self.mesh)
        like = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            *(jax.eval_shape(self.program.init), shardings),
        )
        restored = self.store.restore_newest(like)
        if restored is not None:
            return restored
        state = self.start(jax.jit(self.program.init, out_shardings=shardings)(), shardings)
        _log.info("Parameters:\n%s", parameter_overview.get_parameter_overview(state.params, include_stats=False))
        return state, {}

    @abc.abstractmethod
    def start(self, state: State, shardings: State) -> State:
        """Prepares a new run.

        Args:
          state: the initial state.
          shardings: its shardings, a tree like it.

        Returns:
          The state to start with, which has the weights of `config.init_from` if that is set.

        Raises:
          UserError: the weights cannot be read.
        """

    def batches(self, position: dict[str, Any] | None) -> DeviceBatches:
        """Returns the run's batches on the mesh, from a position (`DeviceBatches.get_state`) or from the start."""
        batches = self.host_batches()
        if position is not None:
            batches.set_state(position)
        return DeviceBatches(batches, lambda batch: put_batch(batch, self.mesh))

    @abc.abstractmethod
    def host_batches(self) -> Any:
        """Returns an iterator over this process's rows of the batches, with `get_state` and `set_state`."""

    @abc.abstractmethod
    def draw_curves(self) -> None:
        """Draws the metrics that were logged so far."""

    def close(self, hurried: bool = False) -> bool:
        """Waits for the last save and releases the folder.

        Args:
          hurried: see `CheckpointStore.close`.

        Returns:
          Whether the last save, if any, succeeded.
        """
        saved = self.store.close(hurried)
        self.lock.close()
        return saved


def check_stored_config(config: Any, folder: epath.Path, allow_config_change: Sequence[str]) -> None:
    """Checks that a config can resume the run that is in a folder, if there is one, and logs what differs.

    Raises:
      UserError: a field that changes what is trained differs, and is not in `allow_config_change`, or this has a name
        that is no field.
    """
    allowed = allowed_changes(config, allow_config_change)
    if (folder / CONFIG_FILE).exists():
        for difference in check_same_run(config, read_config(folder, type(config)), allowed):
            _log.info("resumes with other settings: the run had %s", difference)


def is_new(folder: epath.Path) -> bool:
    """Returns whether a folder has no checkpoint, as the first process sees it."""
    with together(), contextlib.closing(CheckpointStore(folder)) as store:
        steps = store.steps
    return not from_first(steps)


def open_store(config: Any, folder: epath.Path, best: Measure | None) -> tuple[CheckpointStore, contextlib.ExitStack]:
    """Locks a run's folder and opens its checkpoints for writing.

    Args:
      config: the run's config.
      folder: the run's folder.
      best: the measure that `config.checkpoint.best_metric` names, or None.

    Returns:
      The checkpoints and the lock.

    Raises:
      UserError: another process trains in the folder.
    """
    # Locked before the store is opened, which deletes leftovers of interrupted saves.
    held = _lock(folder)
    keep = None
    if best is not None:
        values = from_first(points(read_metrics(folder), best.name))
        keep = Best(best.name, best.larger_is_better, dict(values))
    return CheckpointStore(folder, config.checkpoint, keep), held


def _lock(folder: epath.Path) -> contextlib.ExitStack:
    """Locks the run's folder in the first process.

    Raises:
      UserError: another run trains there, or this process sees another folder than the first one.
    """
    with together():
        held = lock(folder) if is_first() else contextlib.ExitStack()
    holder = from_first(this_process())
    with together():
        if not is_locked_by(folder, holder):
            raise UserError(
                f"--workdir={folder} is not the same folder as in the first process: all processes must share one, on "
                "a network file system or gs://"
            )
    return held
