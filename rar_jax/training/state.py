"""The train state: everything that a step changes, and the guard against updates that are not finite."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rar_jax.models.rar import RAR


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes. It holds no random keys: they are derived from (seed, step).

    Attributes:
      step: int32 [], number of updates done.
      params: the parameters, float32.
      opt_state: the state of the optimizer.
      ema: the exponential moving average of `params`, or None without one.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: optax.OptState
    ema: dict[str, Any] | None

    @property
    def sampling_params(self) -> dict[str, Any]:
        """The parameters to evaluate and sample with: the moving average if there is one."""
        return self.params if self.ema is None else self.ema


def init_state(model: RAR, optimizer: optax.GradientTransformation, seed: int, with_ema: bool) -> TrainState:
    """Returns the state before the first step. A pure function, so that it can be jitted with the mesh's shardings."""
    # The shapes of the parameters do not depend on the length of the sequence, so the shortest one will do.
    tokens = jnp.zeros((1, 1), jnp.int32)
    orders = jnp.zeros((1, model.config.num_tokens), jnp.int32)
    params = model.init(jax.random.key(seed), tokens, tokens[0], orders)["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if with_ema else None,
    )


def moving_average(params: dict[str, Any], average: dict[str, Any], decay: float, step: jax.Array) -> dict[str, Any]:
    """Returns the exponential moving average of parameters after an update.

    The average is shorter at first: update n, from 0, decays it by (1 + n) / (10 + n) at most. Otherwise the initial
    parameters would dominate it for long.

    Args:
      params: the parameters after the update.
      average: their average before it.
      decay: decay of the average in the long run.
      step: int32 [], the number of the update.
    """
    return optax.incremental_update(params, average, 1 - jnp.minimum(decay, (1 + step) / (10 + step)))


def updated_if_finite(old: Any, new: Any, metrics: dict[str, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
    """Returns the state after an update, or the old state if the update is not finite; counts the step either way.

    The optimizer counts only the updates that were made. After n skipped updates it uses the learning rate of n steps
    earlier than the one that is logged.

    Args:
      old, new: train states of any kind, before and after the update.
      metrics: float32 scalars, of which loss and grad_norm decide.

    Returns:
      The state, and the metrics with one more: skipped, 1 if the old state was kept.
    """
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
    return kept.replace(step=old.step + 1), metrics | {"skipped": 1.0 - finite.astype(jnp.float32)}
