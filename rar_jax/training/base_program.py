"""What every program that is trained has in common: its step, compiled on a mesh, and its schedules."""

import abc
from collections.abc import Callable
from typing import Any, Protocol

import jax
import optax
from jax.sharding import Mesh

from rar_jax.parallel.mesh import batch_sharding, put_tree, replicated
from rar_jax.parallel.partition import on_mesh, shardings


class State(Protocol):
    """A train state, a pytree of arrays.

    Attributes:
      step: int32 [], number of updates done.
      params: the parameters, float32.
      sampling_params: the parameters to evaluate with: the moving average if there is one.
    """

    step: jax.Array
    params: dict[str, Any]
    sampling_params: dict[str, Any]


class BaseProgram(abc.ABC):
    """A step, and what surrounds it. Nothing is on a device yet.

    Attributes:
      learning_rate: number of an update, from 0 -> learning rate.
      init: makes the state before the first step.
    """

    learning_rate: optax.Schedule
    init: Callable[[], State]

    def arguments(self) -> Any:
        """Returns a pytree of arrays that `step` also needs, and that are not constants of the compiled step."""
        return ()

    @abc.abstractmethod
    def step(
        self, state: State, batch: dict[str, jax.Array], arguments: Any = ()
    ) -> tuple[State, dict[str, jax.Array]]:
        """Makes one update: a pure function.

        Args:
          state: the state.
          batch: the batch.
          arguments: what `arguments` returns.

        Returns:
          The new state, and float32 scalars to log, among them loss, grad_norm, and skipped, which is 1 for an update
          that was skipped because it was not finite.
        """

    @abc.abstractmethod
    def schedules(self, step: jax.Array) -> dict[str, jax.Array]:
        """Returns the scheduled values to log at an update (from 0), among them the learning rate."""

    def shardings(self, mesh: Mesh) -> State:
        """Returns the shardings of the state on a mesh, a tree like it."""
        return shardings(jax.eval_shape(self.init), mesh)

    def lower_step(self, mesh: Mesh, state: State, batch: dict[str, jax.Array]) -> jax.stages.Lowered:
        """Lowers `step` on a mesh for the shapes of a state and a batch. It donates the state."""
        layout = self.shardings(mesh)
        step = jax.jit(
            on_mesh(self.step, mesh),
            in_shardings=(layout, batch_sharding(mesh), replicated(mesh)),
            out_shardings=(layout, replicated(mesh)),
            donate_argnums=0,
        )
        return step.lower(state, batch, self.arguments())

    def compile_step(self, mesh: Mesh, state: State, batch: dict[str, jax.Array]) -> Callable[..., Any]:
        """Compiles what `lower_step` returns, and puts the arguments on the devices.

        Returns:
          A function of (state, batch).
        """
        compiled = self.lower_step(mesh, state, batch).compile()
        arguments = put_tree(self.arguments(), replicated(mesh))
        return lambda state, batch: compiled(state, batch, arguments)
