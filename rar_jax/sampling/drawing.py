"""A batch of images that is drawn: their orders, the network that predicts their tokens, and how these are chosen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rar_jax.models.rar import RAR
from rar_jax.orders import row_keys
from rar_jax.orders.drawn import known_first, random_orders, spread_orders
from rar_jax.sampling.cached import CachedNetwork, DecodeParams
from rar_jax.sampling.choose import choose_token
from rar_jax.sampling.groups import Plan
from rar_jax.sampling.guidance import guide
from rar_jax.sampling.options import TracedOptions


class Batch(NamedTuple):
    """Images to draw. The first axis of every array belongs to the images.

    Attributes:
      labels: int32 [B], classes 0..C-1 (or C for unconditional images).
      numbers: int32 [B], each image's number in the job. Its draws depend on (key, number, t) alone, so that an image
        does not depend on its batch.
      tokens: int32 [B, T], codes in row-major grid order, of which some are drawn again; None to draw all.
      masked: bool [B, T], the tokens to draw; the others are known. None to draw all.
    """

    labels: jax.Array
    numbers: jax.Array
    tokens: jax.Array | None = None
    masked: jax.Array | None = None


def image_orders(model: RAR, batch: Batch, options: TracedOptions, plan: Plan) -> jax.Array:
    """Returns the order of each image, int32 [B, T]. Known positions come first; see `known_first`."""
    config, shape = model.config, (batch.numbers.shape[0], model.config.num_tokens)
    known = jnp.zeros(shape, bool) if batch.masked is None else ~batch.masked
    if plan.drawn_order is None:
        orders = jnp.broadcast_to(options.order, shape)
    elif plan.drawn_order == "random":
        orders = random_orders(options.key, batch.numbers, config.num_tokens)
    else:
        orders = spread_orders(options.key, batch.numbers, config.grid_side, plan.sizes, known)
    return orders if batch.masked is None else known_first(orders, known)


class Drawing:
    """A batch of images that is drawn, inside a compiled program. It stays the same while tokens are drawn.

    Attributes:
      network: the network, with the class and the order of each image.
      orders: int32 [B, T], each image's positions in the order visited.
      choice: how tokens are chosen from guided logits.
    """

    def __init__(self, model: RAR, params: DecodeParams, batch: Batch, orders: jax.Array, options: TracedOptions):
        """Prepares to draw the tokens of a batch.

        Args:
          model: the network.
          params: from `sampling.cached.prepare`.
          batch: the images.
          orders: int32 [B, T], from `image_orders`.
          options: how tokens are drawn.
        """
        self.network = CachedNetwork(model, params, batch.labels, orders, options.weights is not None)
        self.orders, self.choice = orders, options.choice
        self._batch, self._weights = batch, options.weights
        self._keys = row_keys(options.key, batch.numbers)

    @property
    def all_unknown(self) -> bool:
        """Whether all tokens are drawn."""
        return self._batch.masked is None

    def known_tokens(self) -> tuple[jax.Array, jax.Array]:
        """Returns the tokens in the order visited, int32 [B, T], and how many are known, int32 [B].

        The known ones come first; the others have no meaning.
        """
        if self.all_unknown:
            return jnp.zeros_like(self.orders), jnp.zeros(self.orders.shape[0], jnp.int32)
        visited = jnp.take_along_axis(self._batch.tokens, self.orders, axis=1)
        return visited, (~self._batch.masked).sum(axis=1)

    def token_keys(self, t: jax.Array) -> jax.Array:
        """Returns the keys [B, G] of tokens number t, int32 [G] or [B, G]."""
        t = jnp.broadcast_to(t, (self.orders.shape[0], t.shape[-1]))
        return jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))(self._keys, t)

    def guide(self, t: jax.Array, logits: jax.Array) -> jax.Array:
        """Applies guidance to logits [R, N, V] of tokens number t, int32 [N] or [B, N]: float32 [B, N, V]."""
        if self._weights is None:
            return logits
        conditional, null = jnp.split(logits, 2)
        return guide(conditional, null, self._weights[t][..., None])

    def choose(self, t: jax.Array, logits: jax.Array) -> jax.Array:
        """Draws tokens number t, int32 [G] or [B, G], from guided logits [B, G, V]: int32 [B, G]."""
        keys = self.token_keys(t)
        return choose_token(keys.ravel(), logits.reshape(-1, logits.shape[-1]), self.choice).reshape(keys.shape)

    def in_grid_order(self, visited: jax.Array) -> jax.Array:
        """Puts values [B, T] of tokens in the order visited into row-major grid order."""
        return jax.vmap(lambda values, order: jnp.zeros_like(values).at[order].set(values))(visited, self.orders)
