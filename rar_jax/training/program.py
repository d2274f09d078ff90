"""What a config trains, put together: the network, its recipe and optimizer, and the compiled step on a mesh."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rar_jax.config import Config
from rar_jax.models.rar import RAR
from rar_jax.orders import scan_order
from rar_jax.parallel.mesh import batch_sharding, replicated
from rar_jax.parallel.partition import on_mesh, shardings
from rar_jax.training.optimizer import adamw, learning_rate_schedule
from rar_jax.training.state import TrainState, init_state
from rar_jax.training.step import Recipe, train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """What a config trains; nothing is on a device yet.

    Attributes:
      model, recipe, optimizer: of `training.step.train_step`.
      learning_rate: step -> rate.
      init: makes the state before the first step.
    """

    model: RAR
    recipe: Recipe
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    init: Callable[[], TrainState]

    def shardings(self, mesh: Mesh) -> TrainState:
        """How the state lies on a mesh: a tree like it."""
        return shardings(jax.eval_shape(self.init), mesh)

    def jit_step(self, mesh: Mesh) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
        """`train_step` of (state, batch) on a mesh, jitted; the state is donated."""
        layout = self.shardings(mesh)

        step = functools.partial(train_step, model=self.model, optimizer=self.optimizer, recipe=self.recipe)
        return jax.jit(
            on_mesh(step, mesh),
            in_shardings=(layout, batch_sharding(mesh)),
            out_shardings=(layout, replicated(mesh)),
            donate_argnums=0,
        )


def make_program(config: Config) -> Program:
    """The program of a config."""
    model = RAR(config.model, jnp.dtype(config.train.dtype), config.train.remat)
    warmup_steps = config.optimizer.warmup_epochs * config.steps_per_epoch
    learning_rate = learning_rate_schedule(config.optimizer, warmup_steps, config.total_steps)
    optimizer = adamw(config.optimizer, learning_rate)
    anneal_start, anneal_end = config.anneal_steps
    recipe = Recipe(
        seed=config.seed,
        scan_order=scan_order(config.permutation.scan_order, model.config.grid_side),
        anneal_start=anneal_start,
        anneal_end=anneal_end,
        label_dropout=config.train.label_dropout,
        accumulation=config.train.accumulation,
        ema_decay=config.train.ema_decay,
    )
    init = functools.partial(init_state, model, optimizer, config.seed, config.train.ema_decay > 0)
    return Program(model, recipe, learning_rate, optimizer, init)
