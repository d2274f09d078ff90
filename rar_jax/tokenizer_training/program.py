"""The program that a tokenizer's config trains: the networks, the optimizer and the step."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rar_jax.models.vqgan import VQGAN
from rar_jax.tokenizer_config import TokenizerConfig
from rar_jax.tokenizer_training.discriminator import Discriminator
from rar_jax.tokenizer_training.losses import Distance
from rar_jax.tokenizer_training.state import TokenizerState, init_state
from rar_jax.tokenizer_training.step import Batch, Metrics, TokenizerStep, train_step
from rar_jax.training.base_program import BaseProgram
from rar_jax.training.optimizer import learning_rate_schedule


@dataclasses.dataclass(frozen=True)
class TokenizerProgram(BaseProgram):
    """The program that a tokenizer's config trains; see `BaseProgram`.

    Attributes:
      settings: an argument of `step.train_step`.
      learning_rate: number of an update, from 0 -> learning rate.
      init: makes the state before the first step.
    """

    settings: TokenizerStep
    learning_rate: optax.Schedule
    init: Callable[[], TokenizerState]

    def step(self, state: TokenizerState, batch: Batch) -> tuple[TokenizerState, Metrics]:
        """Makes one update; see `step.train_step`."""
        return train_step(state, batch, self.settings)

    def schedules(self, step: jax.Array) -> dict[str, jax.Array]:
        """Returns the learning rate at an update."""
        return {"learning_rate": self.learning_rate(step)}


def make_program(config: TokenizerConfig, perceptual: Distance | None = None) -> TokenizerProgram:
    """Returns the program of a config, with a perceptual distance if one is given."""
    model = VQGAN(config.model, jnp.dtype(config.train.dtype))
    loss, adam = config.loss, config.optimizer
    discriminator = Discriminator(loss.discriminator_width, loss.discriminator_layers) if loss.adversarial else None
    learning_rate = learning_rate_schedule(adam, adam.warmup_steps, config.train.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(adam.clip_norm), optax.adam(learning_rate, adam.b1, adam.b2))
    settings = TokenizerStep(
        model=model,
        discriminator=discriminator,
        perceptual=perceptual,
        optimizer=optimizer,
        quantizer=config.quantizer,
        loss=loss,
        ema_decay=config.train.ema_decay,
        seed=config.seed,
    )
    init = functools.partial(init_state, model, discriminator, optimizer, config.quantizer, config.seed)
    return TokenizerProgram(settings, learning_rate, init)
