"""The train state of a tokenizer: everything that a step changes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rar_jax.models.vqgan import VQGAN
from rar_jax.tokenizer_config import QuantizerConfig
from rar_jax.tokenizer_training.discriminator import Discriminator
from rar_jax.tokenizer_training.quantizers import fsq_codebook


@flax.struct.dataclass
class DiscriminatorState:
    """The parameters of the discriminator, and the state of its optimizer."""

    params: dict[str, Any]
    opt_state: optax.OptState


@flax.struct.dataclass
class TokenizerState:
    """Everything that a step changes. It holds no random keys: they are derived from (seed, step).

    Attributes:
      step: int32 [], number of updates done.
      params: the parameters of `models.vqgan.VQGAN`, float32.
      opt_state: the state of their optimizer.
      ema: the exponential moving average of `params`. It is the tokenizer that the run makes.
      use: float32 [V], the running share of each code.
      discriminator: the discriminator, or None without one.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: optax.OptState
    ema: dict[str, Any]
    use: jax.Array
    discriminator: DiscriminatorState | None

    @property
    def sampling_params(self) -> dict[str, Any]:
        """The parameters to evaluate with."""
        return self.ema


def init_state(
    model: VQGAN,
    discriminator: Discriminator | None,
    optimizer: optax.GradientTransformation,
    quantizer: QuantizerConfig,
    seed: int,
) -> TokenizerState:
    """Returns the state before the first step. A pure function, so that it can be jitted with the mesh's shardings."""
    keys = jax.random.split(jax.random.key(seed))
    # The shapes of the parameters do not depend on the size of the images, so a small one will do.
    image = jnp.zeros((1, model.config.downsampling, model.config.downsampling, 3))
    params = model.init(keys[0], image)["params"]
    if quantizer.kind == "fsq":
        params = params | {"quantize": {"embedding": jnp.asarray(fsq_codebook(quantizer.levels))}}
    adversary = None
    if discriminator is not None:
        weights = discriminator.init(keys[1], image)["params"]
        adversary = DiscriminatorState(weights, optimizer.init(weights))
    return TokenizerState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params),
        use=jnp.full(model.config.codebook_size, 1 / model.config.codebook_size),
        discriminator=adversary,
    )
