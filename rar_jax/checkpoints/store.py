"""A run's checkpoints: saved by Orbax in the background, with the data iterator's state inside."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from rar_jax.training.state import TrainState

FOLDER = "checkpoints"


def _wanted(like: Any, **options: Any) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), **options)


class CheckpointStore:
    """The checkpoints of one run's folder. Each holds the train state and the position in the data."""

    def __init__(self, run_folder: epath.PathLike, keep: int | None = None):
        """Opens the store.

        Args:
          run_folder: the run's folder; the checkpoints are in `checkpoints/` below it.
          keep: how many of the newest stay when one is saved; None never deletes.
        """
        self._folder = epath.Path(run_folder) / FOLDER
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=keep is not None
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self._folder.resolve(), options=options, item_handlers=handlers)

    @property
    def steps(self) -> list[int]:
        """The steps there are checkpoints of, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, data_state: dict[str, Any]) -> None:
        """Begins to save; the state may be donated as soon as this returns."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(data_state)),
        )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and the data position of a step.

        Args:
          step: one of `steps`.
          like: shapes, dtypes and shardings wanted (`jax.ShapeDtypeStruct` leaves).

        Raises:
          ValueError: the checkpoint cannot be read.
        """
        restored = self._read(step, state=_wanted(like), data=ocp.args.JsonRestore())
        return restored.state, restored.data

    def restore_sampling_params(self, step: int, sharding: jax.sharding.Sharding) -> dict[str, Any]:
        """The parameters to sample with (the moving average where there is one), each laid out by `sharding`.

        Raises:
          ValueError: the checkpoint cannot be read.
        """
        with self._readable(step):
            tree = self._manager.item_metadata(step).state.tree
            name = "ema" if tree["ema"] else "params"
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree[name])
        return self._read(step, state=_wanted({name: like}, partial_restore=True)).state[name]

    def _read(self, step: int, **items: Any) -> ocp.args.Composite:
        with self._readable(step):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Orbax and TensorStore raise many kinds of errors for what is, to a user, one thing."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"checkpoint {self._folder / str(step)} cannot be read: {reason}") from error

    def close(self) -> None:
        """Waits for saves to finish."""
        self._manager.wait_until_finished()
        self._manager.close()
