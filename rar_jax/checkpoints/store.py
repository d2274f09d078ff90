"""A run's checkpoints: saved by Orbax in the background, with the data iterator's state inside."""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from rar_jax.training.state import TrainState

FOLDER = "checkpoints"


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
        self._manager = ocp.CheckpointManager(self._folder.resolve(), options=options)

    @property
    def steps(self) -> list[int]:
        """The steps there are checkpoints of, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, data_state: dict[str, Any]) -> None:
        """Begins to save; the state may be donated as soon as this returns."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state)),
        )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and the data position of a step.

        Args:
          step: one of `steps`.
          like: shapes, dtypes and shardings wanted (`jax.ShapeDtypeStruct` leaves).

        Raises:
          ValueError: the checkpoint cannot be read.
        """
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore())
        restored = self._read(step, args)
        return restored.state, restored.data

    def restore_sampling_params(self, step: int) -> dict[str, Any]:
        """The parameters to sample with (the moving average where there is one), on the first device.

        Raises:
          ValueError: the checkpoint cannot be read.
        """
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        tree = self._read_metadata(step)
        name = "ema" if tree["ema"] else "params"
        like = {name: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree[name])}
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(like, partial_restore=True))
        return self._read(step, args).state[name]

    def _read_metadata(self, step: int) -> dict[str, Any]:
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.metadata(self._folder / str(step) / "state").item_metadata.tree
        except Exception as error:
            raise self._unreadable(step, error) from error

    def _read(self, step: int, args: ocp.args.Composite) -> Any:
        # Orbax and TensorStore raise many kinds of errors for what is, to a user, one thing.
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, error: Exception) -> ValueError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return ValueError(f"checkpoint {self._folder / str(step)} cannot be read: {reason}")

    def close(self) -> None:
        """Waits for saves to finish."""
        self._manager.wait_until_finished()
        self._manager.close()
