"""A run's checkpoints: saved by Orbax in the background, with the position in the data inside, and verified."""

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from rar_jax.checkpoints.manifest import verify, write_manifest
from rar_jax.config import CheckpointConfig
from rar_jax.errors import UserError
from rar_jax.parallel.distributed import from_first, is_first, together, wait_for_all
from rar_jax.training.state import TrainState

_log = logging.getLogger(__name__)

FOLDER = "checkpoints"
# Where damaged checkpoints are put, out of the way of the ones that replace them.
DAMAGED = "damaged_checkpoints"

_POLL_SECONDS = 0.2
# For a manifest when the process is to end: what preempts it may not wait for half a minute.
_HURRIED_SECONDS = 5

_T = TypeVar("_T")


def _absolute(folder: epath.Path) -> epath.Path:
    """As Orbax needs it; of gs://, epath would make a folder of this machine."""
    return folder if "://" in str(folder) else folder.resolve()


def _wanted(like: Any, **options: Any) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), **options)


class _Manager(ocp.CheckpointManager):
    """Orbax asks JAX about preemption on its own, with its steps, and would upset what all processes agree on."""

    def reached_preemption(self, step: int) -> bool:
        """Never: the training loop asks (`training.preemption`)."""
        return False


class CheckpointStore:
    """The checkpoints of one run's folder. Each holds the train state and the position in the data."""

    def __init__(
        self, run_folder: epath.PathLike, config: CheckpointConfig | None = None, *, best_is_max: bool = False
    ):
        """Opens the store.

        Args:
          run_folder: the run's folder; the checkpoints are in `checkpoints/` below it.
          config: which checkpoints stay when one is saved; None only reads.
          best_is_max: whether the largest value of `config.best_metric` is best, and not the smallest.
        """
        self._run_folder = epath.Path(run_folder)
        self._folder = _absolute(self._run_folder) / FOLDER
        self._best_metric = config.best_metric if config else ""
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=True, create=config is not None)
        if config is not None:
            options.cleanup_tmp_directories = True
            policies = [preservation_policy.LatestN(config.keep)]
            if config.keep_every:
                policies.append(preservation_policy.EveryNSteps(config.keep_every))
            if config.best_metric:
                sign = 1 if best_is_max else -1
                options.best_fn = lambda metrics: sign * metrics[config.best_metric]
                policies.append(
                    preservation_policy.BestN(
                        get_metric_fn=options.best_fn, n=1, keep_checkpoints_without_metrics=False
                    )
                )
            options.preservation_policy = preservation_policy.AnyPreservationPolicy(policies)
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
        self._manager = _Manager(self._folder, options=options, item_handlers=handlers)
        self._saved = True
        self._manifest: threading.Thread | None = None
        self._no_manifest = threading.Event()

    @property
    def steps(self) -> list[int]:
        """The steps there are checkpoints of, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, data_state: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Begins to save; the state may be donated as soon as this returns.

        A save that fails is logged and leaves the older checkpoints as they are.

        Args:
          state: to save.
          data_state: the position in the data; JSON values.
          metrics: of this state, for the keep policy.
        """
        step = int(state.step)
        best = {self._best_metric: metrics[self._best_metric]} if self._best_metric in (metrics or {}) else None
        self._finish()
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(data_state)),
                metrics=best,
            )
        # TensorStore and the file system raise many kinds of errors; training need not end for them.
        except Exception as error:
            self._failed(f"the save of step {step}", error)
            return
        self._saved = True
        if is_first():
            self._no_manifest = threading.Event()
            self._manifest = threading.Thread(
                target=self._write_manifest, args=(step, self._no_manifest), name="manifest", daemon=True
            )
            self._manifest.start()

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and the data position of a step.

        Args:
          step: one of `steps`.
          like: shapes, dtypes and shardings wanted (`jax.ShapeDtypeStruct` leaves).

        Raises:
          UserError: the checkpoint is damaged or cannot be read.
        """
        with together():
            # Every file is read for it, by one process each.
            self.verify(step, jax.process_index(), jax.process_count())
        with together():
            restored = self._read(step, state=_wanted(like), data=ocp.args.JsonRestore())
        return restored.state, restored.data

    def restore_newest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None if there are none; damaged ones are put aside.

        Raises:
          UserError: there are checkpoints and none can be read; each is named with the reason.
        """
        steps = from_first(self.steps)
        if not steps:
            return None
        step, restored, damaged = self._newest_readable(steps, lambda step: self.restore(step, like))
        if damaged:
            self._put_aside(damaged)
            _log.error("went back to the checkpoint of step %d; the newer ones are in %s", step, DAMAGED)
        return restored

    def restore_sampling_params(self, step: int, sharding: jax.sharding.Sharding, dtype: str) -> dict[str, Any]:
        """The parameters to sample with (the moving average where there is one), and nothing else of the state.

        Args:
          step: one of `steps`.
          sharding: how each array is to lie.
          dtype: of the floating-point arrays; they are cast before they are put on the devices.

        Raises:
          UserError: the checkpoint is damaged or cannot be read.
        """
        self.verify(step)
        with self._readable(step):
            tree = self._manager.item_metadata(step).state.tree
            name = "ema" if tree.get("ema") else "params"
            like = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, restored_dtype(x.dtype, dtype), sharding=sharding), tree[name]
            )
        return self._read(step, state=_wanted({name: like}, partial_restore=True)).state[name]

    def restore_newest_sampling_params(self, sharding: jax.sharding.Sharding, dtype: str) -> tuple[int, dict[str, Any]]:
        """The parameters to sample with of the newest checkpoint that can be read, and its step.

        Damaged ones stay where they are: only training, which replaces them, puts them aside.

        Args:
          sharding, dtype: as in `restore_sampling_params`.

        Raises:
          UserError: there are no checkpoints, or none can be read; each is named with the reason.
        """
        step, params, damaged = self._newest_readable(
            self.steps, lambda step: self.restore_sampling_params(step, sharding, dtype)
        )
        if damaged:
            _log.warning(
                "the checkpoint of step %d is used, as that of step %s cannot be read",
                step,
                ", ".join(map(str, damaged)),
            )
        return step, params

    def verify(self, step: int, part: int = 0, parts: int = 1) -> None:
        """Compares a checkpoint's files with what was written; of several processes, each its part.

        Raises:
          UserError: it is damaged.
        """
        with self._readable(step):
            if not verify(self._folder / str(step), part, parts):
                _log.warning("checkpoint %s has no manifest yet, and is restored unverified", self._folder / str(step))

    def close(self, hurried: bool = False) -> bool:
        """Waits for saves to finish. Returns whether the last one, if any, did.

        Args:
          hurried: a large checkpoint may go without its manifest, for which all of it is read again.
        """
        self._finish(_HURRIED_SECONDS if hurried else None)
        with contextlib.suppress(Exception):  # Said already.
            self._manager.close()
        return self._saved

    def _newest_readable(self, steps: list[int], read: Callable[[int], _T]) -> tuple[int, _T, list[int]]:
        """The newest of some steps that can be read, what was read of it, and the newer ones that could not be.

        Raises:
          UserError: there are no checkpoints, or none can be read; each is named with the reason.
        """
        damaged = {}
        for step in reversed(steps):
            try:
                result = read(step)
            except ValueError as error:
                damaged[step] = error
                continue
            for error in damaged.values():
                _log.error("%s", error)
            return step, result, list(damaged)
        if not damaged:
            raise UserError(f"no checkpoint in {str(self._run_folder)!r}")
        raise UserError("no checkpoint can be read: " + "; ".join(map(str, damaged.values())))

    def _failed(self, what: str, error: Exception) -> None:
        self._saved = False
        self._no_manifest.set()
        self._manifest = None
        if is_first():
            # What was written of it would keep a full disk full.
            for leftover in self._folder.glob("*.orbax-checkpoint-tmp*"):
                leftover.rmtree(missing_ok=True)
        _log.error("%s failed: %s; older checkpoints stay: %s", what, _first_line(error), self._reload())

    def _reload(self) -> list[int]:
        """What is on disk: a failed save leaves the manager believing in it."""
        self._manager.reload()
        return self.steps

    def _write_manifest(self, step: int, given_up: threading.Event) -> None:
        folder = self._folder / str(step)
        while not (folder.exists() and ocp.utils.is_checkpoint_finalized(folder)):
            if given_up.wait(_POLL_SECONDS):
                return
        try:
            write_manifest(folder)
        # The checkpoint is good without; it may have been deleted meanwhile.
        except OSError as error:
            _log.warning("no manifest for %s: %s", folder, error)

    def _finish(self, manifest_seconds: float | None = None) -> None:
        """Waits for the save before and its manifest, for which no longer than so long."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            self._failed("the save before", error)
        if self._manifest is not None:
            self._manifest.join(manifest_seconds)
            self._manifest = None

    def _put_aside(self, steps) -> None:
        if is_first():
            (self._run_folder / DAMAGED).mkdir(parents=True, exist_ok=True)
            for step in steps:
                target = self._run_folder / DAMAGED / str(step)
                if target.exists():
                    target.rmtree()
                (self._folder / str(step)).rename(target)
        wait_for_all("damaged checkpoints put aside")
        self._reload()

    def _read(self, step: int, **items: Any) -> ocp.args.Composite:
        with self._readable(step):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Orbax and TensorStore raise many kinds of errors for what is, to a user, one thing."""
        try:
            yield
        except Exception as error:
            raise UserError(f"checkpoint {self._folder / str(step)} cannot be read: {_first_line(error)}") from error


def save_params(run_folder: epath.PathLike, step: int, params: dict[str, Any]) -> None:
    """Saves parameters alone, as a checkpoint that `CheckpointStore.restore_sampling_params` reads.

    In the foreground and a few at a time, so that no second copy of all of them is held; of NumPy arrays Orbax would
    make one. Not compressed: weights hardly get smaller, and it takes twice the time.

    Args:
      run_folder: `checkpoints/` is made below it.
      step: of the checkpoint.
      params: of `jax.Array`.
    """
    folder = _absolute(epath.Path(run_folder)) / FOLDER
    # Orbax refuses an array that is larger than its limit.
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=math.ceil(largest / 1e9), use_compression=False)
    with ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False),
        item_handlers={"state": handler, "data": ocp.JsonCheckpointHandler()},
    ) as manager:
        items = {"state": ocp.args.PyTreeSave({"params": params}), "data": ocp.args.JsonSave({})}
        manager.save(step, args=ocp.args.Composite(**items))
    write_manifest(folder / str(step))


def restored_dtype(stored: jnp.dtype, wanted: str) -> jnp.dtype:
    """What an array of a dtype is restored as: floating-point numbers as wanted, others as they are."""
    return jnp.dtype(wanted) if jnp.issubdtype(stored, jnp.floating) else stored


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
