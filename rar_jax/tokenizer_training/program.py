"""The program that a tokenizer's config trains: the networks, the optimizer and the step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rar_jax.checkpoints.weights import Weights
from rar_jax.models.vqgan import VQGAN
from rar_jax.tokenizer_config import TokenizerConfig
from rar_jax.tokenizer_training.discriminator import Discriminator
from rar_jax.tokenizer_training.state import TokenizerState, init_state
from rar_jax.tokenizer_training.step import Batch, Metrics, TokenizerStep, train_step
from rar_jax.training.base_program import BaseProgram
from rar_jax.training.optimizer import learning_rate_schedule


@dataclasses.dataclass(frozen=True)
class TokenizerProgram(BaseProgram):
    """The program that a tokenizer's config trains; see `BaseProgram`.

    Attributes:
      settings, inception: arguments of `step.train_step`.
      learning_rate: number of an update, from 0 -> learning rate.
      init: makes the state before the first step.
    """

    settings: TokenizerStep
    inception: dict[str, Any] | None
    learning_rate: optax.Schedule
    init: Callable[[], TokenizerState]

    def arguments(self) -> dict[str, Any] | None:
        """Returns the weights of the Inception network. As constants, they would make the program 90 MB larger."""
        return self.inception

    def step(
        self, state: TokenizerState, batch: Batch, arguments: dict[str, Any] | None = None
    ) -> tuple[TokenizerState, Metrics]:
        """Makes one update; see `step.train_step`."""
        return train_step(state, batch, self.settings, arguments)

    def schedules(self, step: jax.Array) -> dict[str, jax.Array]:
        """Returns the learning rate at an update."""
        return {"learning_rate": self.learning_rate(step)}


def make_program(config: TokenizerConfig, inception: Weights | None = None) -> TokenizerProgram:
    """Returns the program of a config.

    Args:
      config: the config.
      inception: the FID Inception network, for the perceptual distance if `config.loss.perceptual` is above 0; None
        without it.
    """
    if not config.loss.perceptual:
        inception = None
    model = VQGAN(config.model, jnp.dtype(config.train.dtype))
    loss, adam = config.loss, config.optimizer
    discriminator = Discriminator(loss.discriminator_width, loss.discriminator_layers) if loss.adversarial else None
    learning_rate = learning_rate_schedule(adam, adam.warmup_steps, config.train.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(adam.clip_norm), optax.adam(learning_rate, adam.b1, adam.b2))
    settings = TokenizerStep(
        model=model,
        discriminator=discriminator,
        inception=None if inception is None else inception.model,
        optimizer=optimizer,
        quantizer=config.quantizer,
        loss=loss,
        ema_decay=config.train.ema_decay,
        seed=config.seed,
    )
    init = functools.partial(init_state, model, discriminator, optimizer, config.quantizer, config.seed)
    weights = None if inception is None else jax.tree.map(np.asarray, inception.params)
    return TokenizerProgram(settings, weights, learning_rate, init)
