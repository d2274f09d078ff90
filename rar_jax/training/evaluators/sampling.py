"""Samples images for the evaluators."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from rar_jax.config import Config, sample_options
from rar_jax.models.rar import RAR
from rar_jax.sampling.sampler import Sampler, sample_tokens


class StepSampler:
    """Samples with the parameters of a step, with the options and the seed of the run's config."""

    def __init__(self, config: Config, model: RAR, mesh: Mesh):
        """Takes the options and the seed from the config. Nothing is compiled yet."""
        self._model = model
        self._mesh = mesh
        self._options = sample_options(config)
        self._seed = config.seed

    def tokens(
        self,
        params: dict[str, Any],
        labels: np.ndarray,
        batch_size: int,
        check: Callable[[], None],
        **options: float,
    ) -> np.ndarray:
        """Samples one image for each label. All processes take part.

        Args:
          params: the network's parameters, as trained.
          labels: int [N].
          batch_size: images decoded at once.
          check: called after each batch; may raise `Preempted`.
          options: sampling options that replace those of the config.

        Returns:
          int32 [N, T], codes in grid order.
        """
        return sample_tokens(
            Sampler(self._model, params, self._mesh),
            labels,
            dataclasses.replace(self._options, **options),
            seed=self._seed,
            batch_size=batch_size,
            on_batch=lambda _: check(),
        )
