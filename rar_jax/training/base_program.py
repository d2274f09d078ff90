"""What every program that is trained has in common: its step, compiled on a mesh, and its schedules."""

import abc
from collections.abc import Callable
from typing import Any, Protocol

import jax
import optax
from jax.sharding import Mesh

from rar_jax.parallel.mesh import batch_sharding, replicated
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

    @abc.abstractmethod
    def step(self, state: State, batch: dict[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        """Makes one update: a pure function.

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

    def jit_step(self, mesh: Mesh) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
        """Returns `step` as a jitted function of (state, batch) on a mesh. It donates the state."""
        return self.jit_function(self.step, mesh)

    def jit_function(self, step: Callable[..., Any], mesh: Mesh, *more: Any) -> Callable[..., Any]:
        """Jits a function of (state, batch, ...) as `jit_step` does. `more` are shardings of its further arguments."""
        layout = self.shardings(mesh)
        return jax.jit(
            on_mesh(step, mesh),
            in_shardings=(layout, batch_sharding(mesh), *more),
            out_shardings=(layout, replicated(mesh)),
            donate_argnums=0,
        )

    def compile_step(self, mesh: Mesh, state: State, batch: dict[str, jax.Array]) -> Callable[..., Any]:
        """Compiles `jit_step` for the shapes of a state and a batch. Returns a function of (state, batch)."""
        return self.jit_step(mesh).lower(state, batch).compile()

    def jit_schedules(self) -> Callable[[int], dict[str, jax.Array]]:
        """Returns `schedules` as a jitted function."""
        # One program compiles faster than the many small ones that the schedules would be.
        return jax.jit(self.schedules)
