"""A run's checkpoints: saved by Orbax in the background, with the position in the data, and verified by checksum."""

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from rar_jax.checkpoints.manifest import DamagedError, verify, write_manifest
from rar_jax.checkpoints.quiet import silence_saves
from rar_jax.config import CheckpointConfig
from rar_jax.errors import UserError
from rar_jax.files import write_atomically
from rar_jax.parallel.distributed import from_all, from_first, is_first, together, wait_for_all

_log = logging.getLogger(__name__)

FOLDER = "checkpoints"
# Damaged checkpoints are moved to this folder beside it, so that new ones can be saved for the same steps.
DAMAGED = "damaged_checkpoints"

_POLL_SECONDS = 0.2
# How long a process that is being preempted waits for the manifest of its last save.
_HURRIED_SECONDS = 5

_T = TypeVar("_T")


def _absolute(folder: epath.Path) -> epath.Path:
    """Returns the absolute path, which Orbax needs; gs:// paths are absolute, and epath would make them local."""
    return folder if "://" in str(folder) else folder.resolve()


def _wanted(like: Any, **options: Any) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), **options)


class Best(preservation_policy.PreservationPolicy):
    """Keeps the checkpoint with the best value of a metric.

    Orbax's own policy knows what was measured before a checkpoint was saved, but a run saves first and measures
    afterwards. So the last checkpoint competes only when the next one is saved, and a run can end with one checkpoint
    more than the policies ask for. Values that are not finite do not compete.
    """

    def __init__(self, metric: str, is_max: bool, values: Mapping[int, float]):
        """Starts with the values that were measured earlier.

        Args:
          metric: name of the metric.
          is_max: whether the largest value is the best, rather than the smallest.
          values: step -> value.
        """
        self._metric, self._values = metric, {step: value for step, value in values.items() if math.isfinite(value)}
        self._choose = max if is_max else min

    def add(self, step: int, measured: Mapping[str, float]) -> None:
        """Takes the value of the metric from what was measured at a step, if it was."""
        if math.isfinite(measured.get(self._metric, math.nan)):
            self._values[step] = measured[self._metric]

    def forget(self, step: int) -> None:
        """Forgets the value of a step, which is that of an earlier checkpoint if the step is saved again."""
        self._values.pop(step, None)

    def should_preserve(
        self,
        checkpoints: Sequence[preservation_policy.PolicyCheckpointInfo],
        *,
        context: preservation_policy.PreservationContext,
    ) -> Sequence[bool]:
        """See Orbax. Checkpoints that were not measured are not kept."""
        measured = [info.step for info in checkpoints if info.step in self._values]
        best = self._choose(measured, key=self._values.__getitem__, default=None)
        return [info.step == best for info in checkpoints]


def _manager_options(config: CheckpointConfig | None, best: Best | None) -> ocp.CheckpointManagerOptions:
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=True, create=config is not None)
    if config is None:
        # One process may read what others do not, such as a tokenizer, so that it must not wait for them.
        this = jax.process_index()
        options.multiprocessing_options = ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})
        return options
    options.cleanup_tmp_directories = True
    policies = [preservation_policy.LatestN(config.keep)]
    if config.keep_every:
        policies.append(preservation_policy.EveryNSteps(config.keep_every))
    if best is not None:
        policies.append(best)
    options.preservation_policy = preservation_policy.AnyPreservationPolicy(policies)
    return options


class _Manager(ocp.CheckpointManager):
    """A manager that leaves preemption to the training loop, where all processes agree on the step to stop at."""

    def reached_preemption(self, step: int) -> bool:
        """Returns False: the training loop asks `training.preemption` instead."""
        return False


class CheckpointStore:
    """The checkpoints of one run's folder. Each holds the train state and the position in the data."""

    def __init__(self, run_folder: epath.PathLike, config: CheckpointConfig | None = None, best: Best | None = None):
        """Opens the store.

        Args:
          run_folder: the run's folder; the checkpoints are in `checkpoints/` below it.
          config: which checkpoints are kept when one is saved; None opens the store for reading only.
          best: which checkpoint is also kept as the best one; None keeps none.
        """
        self._run_folder = epath.Path(run_folder)
        self._folder = _absolute(self._run_folder) / FOLDER
        self._best = best
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
        self._manager = _Manager(self._folder, options=_manager_options(config, best), item_handlers=handlers)
        self._saved = True
        # The abandoned tasks of a failed save end, and print, much later, so the silence lasts until a save succeeds.
        self._quiet = contextlib.ExitStack()
        # Completes a save in the background.
        self._watcher: threading.Thread | None = None
        self._given_up = threading.Event()

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def has_weights_only(self) -> bool:
        """Returns whether the newest checkpoint is one of `save_params`, which holds no state to train from."""
        try:
            tree = self._manager.item_metadata(self.steps[-1]).state.tree
        # There is no checkpoint, or it is damaged in one of many ways, which restoring it reports.
        except Exception:
            return False
        return [*tree] == ["params"]

    def save(self, state: Any, data_state: dict[str, Any], hurried: bool = False) -> None:
        """Starts to save in the background. The state may be donated as soon as this returns.

        A save that fails is logged and leaves the older checkpoints as they are.

        Args:
          state: a pytree of arrays with an attribute `step`, int32 [].
          data_state: the position in the data; JSON values.
          hurried: whether to wait only for the previous save, and to give its manifest up unless it is written.
        """
        step = int(state.step)
        self._finish(0 if hurried else None)
        if self._best is not None:
            self._best.forget(step)
        self._quiet.callback(silence_saves())
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(data_state)),
            )
        # TensorStore and the file system raise many kinds of errors, and training can continue after all of them.
        except Exception as error:
            self._failed(f"the save of step {step}", error)
            return
        self._saved = True
        self._given_up = threading.Event()
        self._watcher = threading.Thread(
            target=self._complete, args=(step, self._given_up), name="checkpoint", daemon=True
        )
        self._watcher.start()

    def add_measured(self, step: int, measured: Mapping[str, float]) -> None:
        """Takes note of what was measured at a step, which decides whether its checkpoint is kept as the best one."""
        if self._best is not None:
            self._best.add(step, measured)

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Returns the state and the position in the data of a step, after the checksums of all files are verified.

        Args:
          step: one of `steps`.
          like: the pytree of shapes, dtypes and shardings wanted (`jax.ShapeDtypeStruct` leaves).

        Raises:
          DamagedError: the checkpoint is damaged; every process raises it.
          Exception: whatever Orbax raises if the checkpoint cannot be restored, such as a ValueError for other shapes.
        """
        self._verify_together(step)
        restored = self._restore(step, state=_wanted(like), data=ocp.args.JsonRestore())
        return restored.state, restored.data

    def restore_newest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Restores the newest checkpoint that is not damaged, and moves newer, damaged ones to `damaged_checkpoints/`.

        Returns:
          The state and the position in the data, or None if there are no checkpoints.

        Raises:
          UserError: all checkpoints are damaged; each is named with the reason.
          Exception: as in `restore`; no checkpoint is moved then.
        """
        steps = from_first(self.steps)
        if not steps:
            return None
        step, restored, damaged = self._newest_undamaged(steps, lambda step: self.restore(step, like))
        if damaged:
            self._put_aside(damaged)
            _log.error("went back to the checkpoint of step %d; the newer ones are in %s", step, DAMAGED)
        return restored

    def restore_sampling_params(self, step: int, sharding: jax.sharding.Sharding, dtype: str) -> dict[str, Any]:
        """Returns the parameters to sample with: the moving average if the run has one.

        Nothing else is restored, but all files are read for their checksums.

        Args:
          step: one of `steps`.
          sharding: sharding of each array.
          dtype: dtype of the floating-point arrays; they are cast before they are put on the devices.

        Raises:
          DamagedError: the checkpoint is damaged.
          Exception: whatever Orbax raises if the checkpoint cannot be restored.
        """
        self._verify(step)
        with self._reading(step):
            tree = self._manager.item_metadata(step).state.tree
            name = "ema" if tree.get("ema") else "params"
            like = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, restored_dtype(x.dtype, dtype), sharding=sharding), tree[name]
            )
        return self._restore(step, state=_wanted({name: like}, partial_restore=True)).state[name]

    def restore_newest_sampling_params(self, sharding: jax.sharding.Sharding, dtype: str) -> tuple[int, dict[str, Any]]:
        """Returns the step of the newest checkpoint that is not damaged, and its parameters to sample with.

        Damaged checkpoints stay where they are: only training, which replaces them, moves them.

        Args:
          sharding: as in `restore_sampling_params`.
          dtype: as in `restore_sampling_params`.

        Raises:
          UserError: there are no checkpoints, or all are damaged; each is named with the reason.
          Exception: as in `restore_sampling_params`.
        """
        step, params, damaged = self._newest_undamaged(
            self.steps, lambda step: self.restore_sampling_params(step, sharding, dtype)
        )
        if damaged:
            steps = ", ".join(map(str, damaged))
            _log.warning("using the checkpoint of step %d, because newer ones are damaged: %s", step, steps)
        return step, params

    def close(self, hurried: bool = False) -> bool:
        """Waits for saves to finish. Returns whether the last save, if there was one, succeeded.

        Args:
          hurried: whether to wait only briefly for the manifest, for which the whole checkpoint is read again.
        """
        self._finish(_HURRIED_SECONDS if hurried else None)
        with contextlib.suppress(Exception):  # `_finish` has logged it.
            self._manager.close()
        return self._saved

    def _newest_undamaged(self, steps: list[int], read: Callable[[int], _T]) -> tuple[int, _T, dict[int, DamagedError]]:
        """Returns the newest step that is not damaged, what `read` returns for it, and the newer, damaged steps.

        Raises:
          UserError: there are no checkpoints, or all are damaged; each is named with the reason.
        """
        damaged = {}
        for step in reversed(steps):
            try:
                result = read(step)
            except DamagedError as error:
                damaged[step] = error
                continue
            for error in damaged.values():
                _log.error("%s", error)
            return step, result, damaged
        if not damaged:
            raise UserError(f"no checkpoint in {str(self._run_folder)!r}")
        raise UserError("no checkpoint can be read: " + "; ".join(map(str, damaged.values())))

    def _verify(self, step: int, part: int = 0, parts: int = 1) -> None:
        """Verifies one process's share of a checkpoint's files. Raises `DamagedError`."""
        if not verify(self._folder / str(step), part, parts):
            _log.warning("checkpoint %s has no manifest, and is restored unverified", self._folder / str(step))

    def _verify_together(self, step: int) -> None:
        """Verifies a checkpoint's files, each by one process. Raises `DamagedError` in all processes."""
        damage = ""
        with together():
            try:
                self._verify(step, jax.process_index(), jax.process_count())
            except DamagedError as error:
                damage = str(error)
        if found := [message for message in from_all(damage) if message]:
            raise DamagedError(found[0])

    def _failed(self, what: str, error: Exception) -> None:
        self._saved = False
        self._given_up.set()
        self._watcher = None
        if is_first():
            # Otherwise the files of the failed save keep a full disk full.
            for leftover in self._folder.glob("*.orbax-checkpoint-tmp*"):
                # The abandoned tasks may still write there, and buckets raise many kinds of errors.
                with contextlib.suppress(Exception):
                    leftover.rmtree()
        _log.error("%s failed: %s; older checkpoints stay: %s", what, _first_line(error), self._reload())

    def _reload(self) -> list[int]:
        """Makes the manager list the checkpoints on disk again, without the failed save. Returns the steps."""
        self._manager.reload()
        return self.steps

    def _complete(self, step: int, given_up: threading.Event) -> None:
        """Waits until a save has succeeded. Then ends the silence, and writes the manifest in the first process."""
        folder = self._folder / str(step)
        while not (folder.exists() and ocp.utils.is_checkpoint_finalized(folder)):
            if given_up.wait(_POLL_SECONDS):
                return
        self._quiet.close()
        if not is_first():
            return
        try:
            write_manifest(folder, given_up)
        # The checkpoint is usable without a manifest, and it may have been deleted in the meantime.
        except Exception as error:
            _log.warning("no manifest for %s: %s", folder, error)

    def _finish(self, manifest_seconds: float | None = None) -> None:
        """Waits for the previous save and, at most `manifest_seconds`, for its manifest; 0 gives the manifest up."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            self._failed("the previous save", error)
        if self._watcher is not None:
            if manifest_seconds == 0:
                # Ends the watcher soon, also while it reads files.
                self._given_up.set()
            self._watcher.join(manifest_seconds or None)
            self._given_up.set()
            self._watcher = None
        # The watcher ends the silence too, and two threads must not do so at once.
        if self._saved:
            self._quiet.close()

    def _put_aside(self, damaged: Mapping[int, DamagedError]) -> None:
        if is_first():
            (self._run_folder / DAMAGED).mkdir(parents=True, exist_ok=True)
            for step, error in damaged.items():
                # First, because a bucket has no empty folders, and nothing can be moved into one that is not there.
                write_atomically(self._run_folder / DAMAGED / f"{step}.txt", f"{error}\n")
                target = self._run_folder / DAMAGED / str(step)
                if target.exists():
                    target.rmtree()
                (self._folder / str(step)).rename(target)
        wait_for_all("damaged checkpoints put aside")
        self._reload()

    def _restore(self, step: int, **items: Any) -> ocp.args.Composite:
        with self._reading(step):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Adds to any error which checkpoint was read."""
        try:
            yield
        except Exception as error:
            error.add_note(f"raised while checkpoint {self._folder / str(step)} was read")
            raise


def save_params(run_folder: epath.PathLike, step: int, params: dict[str, Any]) -> None:
    """Saves parameters alone, as a checkpoint that `CheckpointStore.restore_sampling_params` reads.

    Args:
      run_folder: `checkpoints/` is created below it.
      step: the checkpoint's step.
      params: a pytree of `jax.Array`.
    """
    folder = _absolute(epath.Path(run_folder)) / FOLDER
    # Orbax refuses an array that is larger than its limit of concurrent bytes.
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=math.ceil(largest / 1e9), use_compression=False)
    # Not ended after a failure, because its abandoned tasks print later.
    end_silence = silence_saves()
    with ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False),
        item_handlers={"state": handler, "data": ocp.JsonCheckpointHandler()},
    ) as manager:
        items = {"state": ocp.args.PyTreeSave({"params": params}), "data": ocp.args.JsonSave({})}
        manager.save(step, args=ocp.args.Composite(**items))
    end_silence()
    write_manifest(folder / str(step))


def restored_dtype(stored: jnp.dtype, wanted: str) -> jnp.dtype:
    """Returns the dtype to restore an array in: the wanted one if it is floating-point, otherwise the stored one."""
    return jnp.dtype(wanted) if jnp.issubdtype(stored, jnp.floating) else stored


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
