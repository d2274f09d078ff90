"""The program that a config trains: the network, the optimizer and the compiled step on a mesh."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rar_jax.config import Config
from rar_jax.errors import UserError
from rar_jax.models.rar import RAR
from rar_jax.orders import scan_order
from rar_jax.training.base_program import BaseProgram
from rar_jax.training.optimizer import adamw, learning_rate_schedule
from rar_jax.training.state import TrainState, init_state
from rar_jax.training.step import Batch, StepConfig, train_step


@dataclasses.dataclass(frozen=True)
class Program(BaseProgram):
    """The program that a config trains; see `BaseProgram`.

    Attributes:
      model, step_config, optimizer: arguments of `training.step.train_step`.
      learning_rate: number of an update, from 0 -> learning rate.
      init: makes the state before the first step.
    """

    model: RAR
    step_config: StepConfig
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    init: Callable[[], TrainState]

    def check_devices(self, mesh: Mesh) -> None:
        """Raises a `UserError` if the devices of a mesh have no kernel for the model's attention."""
        platform = mesh.devices.flat[0].platform
        if self.model.attention == "pallas" and platform not in ("gpu", "cuda"):
            raise UserError(
                f"config.train.attention='pallas' has kernels for NVIDIA GPUs only, and this is a {platform}: use 'xla'"
            )

    def lower_step(self, mesh: Mesh, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """See `BaseProgram.lower_step` and `check_devices`."""
        self.check_devices(mesh)
        return super().lower_step(mesh, state, batch)

    def step(
        self, state: TrainState, batch: Batch, arguments: tuple[()] = ()
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes one update; see `training.step.train_step`."""
        return train_step(state, batch, model=self.model, optimizer=self.optimizer, step_config=self.step_config)

    def schedules(self, step: jax.Array) -> dict[str, jax.Array]:
        """Returns the learning rate and r at an update."""
        return {"learning_rate": self.learning_rate(step), "r": self.step_config.randomness(step)}


def make_program(config: Config) -> Program:
    """Returns the program of a config."""
    model = RAR(config.model, jnp.dtype(config.train.dtype), config.train.remat, config.train.attention)
    warmup_steps = config.optimizer.warmup_epochs * config.steps_per_epoch
    learning_rate = learning_rate_schedule(config.optimizer, warmup_steps, config.total_steps)
    optimizer = adamw(config.optimizer, learning_rate)
    anneal_start, anneal_end = config.anneal_steps
    step_config = StepConfig(
        seed=config.seed,
        scan_order=scan_order(config.permutation.scan_order, model.config.grid_side),
        anneal_start=anneal_start,
        anneal_end=anneal_end,
        final_randomness=config.permutation.final_randomness,
        anneal_shape=config.permutation.shape,
        label_dropout=config.train.label_dropout,
        accumulation=config.train.accumulation,
        ema_decay=config.train.ema_decay,
    )
    init = functools.partial(init_state, model, optimizer, config.seed, config.train.ema_decay > 0)
    return Program(model, step_config, learning_rate, optimizer, init)
