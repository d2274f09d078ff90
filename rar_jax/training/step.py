"""The training step and the evaluation step, as pure functions of (state, batch)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rar_jax.models.rar import RAR
from rar_jax.orders import randomness, row_keys, sample_orders
from rar_jax.training.state import TrainState

# {"tokens": int32 [B, T], "label": int32 [B]}
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a step needs to know beside the model and the optimizer.

    Attributes:
      seed: of every draw of the run.
      scan_order: int32 [T], the target order.
      anneal_start, anneal_end: the steps between which r falls from 1 to 0 (`orders.randomness`).
      label_dropout: probability that a label is replaced by the null class.
      accumulation: microbatches whose gradients are averaged for one update.
      ema_decay: of the moving average; 0 when there is none.
    """

    seed: int
    scan_order: np.ndarray
    anneal_start: int
    anneal_end: int
    label_dropout: float = 0.1
    accumulation: int = 1
    ema_decay: float = 0.0


def drop_labels(key: jax.Array, labels: jax.Array, rate: float, null_class: int) -> jax.Array:
    """Replaces each of labels [B] by the null class with probability `rate`, row by row (`orders.row_keys`)."""
    draws = jax.vmap(jax.random.uniform)(row_keys(key, jnp.arange(labels.shape[0])))
    return jnp.where(draws < rate, null_class, labels)


def draw_examples(model: RAR, recipe: Recipe, step: jax.Array, batch: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
    """Makes the examples of a step: each image in its drawn order, some labels dropped.

    Every draw comes from (seed, step, the row's place in the global batch), whatever the mesh or the accumulation.

    Returns:
      {"visited": int32 [B, T], the tokens in the order visited, "label": int32 [B], "order": int32 [B, T]}, and a key
      for dropout.
    """
    key = jax.random.fold_in(jax.random.key(recipe.seed), step)
    order_key, label_key, dropout_key = jax.random.split(key, 3)
    r = randomness(step, recipe.anneal_start, recipe.anneal_end)
    orders = sample_orders(order_key, batch["label"].shape[0], jnp.asarray(recipe.scan_order), r)
    examples = {
        "visited": jnp.take_along_axis(batch["tokens"], orders, axis=1),
        "label": drop_labels(label_key, batch["label"], recipe.label_dropout, model.config.null_class),
        "order": orders,
    }
    return examples, dropout_key


def token_losses(
    model: RAR, params: dict[str, Any], examples: dict[str, jax.Array], dropout_key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The loss and the hit of every predicted token.

    The last token of an order predicts nothing, so it is not run.

    Args:
      model, params: the network.
      examples: as `draw_examples` gives them.
      dropout_key: dropout is on when given.

    Returns:
      cross-entropy in nats, float32 [B, T], and bool [B, T], true where the most likely code is the right one.
    """
    logits = model.apply(
        {"params": params},
        examples["visited"][:, :-1],
        examples["label"],
        examples["order"],
        dropout_key,
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples["visited"])
    return losses, jnp.argmax(logits, axis=-1) == examples["visited"]


def _microbatches(examples: dict[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """[B, ...] -> [count, B / count, ...]; microbatch i takes rows i, i + count, ..., so no row changes device."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), examples)


def train_step(
    state: TrainState, batch: Batch, *, model: RAR, optimizer: optax.GradientTransformation, recipe: Recipe
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update; where the loss or a gradient is not finite, only the step is counted.

    Returns:
      the new state, and float32 scalars: loss (nats a token), accuracy, grad_norm (before clipping), and skipped, 1 for
      an update left out.
    """
    examples, dropout_key = draw_examples(model, recipe, state.step, batch)

    def loss_fn(params, examples, key):
        losses, hits = token_losses(model, params, examples, key)
        return losses.mean(), {"loss": losses.mean(), "accuracy": hits.mean()}

    def gradients(examples, key):
        return jax.grad(loss_fn, has_aux=True)(state.params, examples, key)

    if recipe.accumulation == 1:
        grads, metrics = gradients(examples, dropout_key)
    else:

        def accumulate(total, xs):
            examples, index = xs
            new = gradients(examples, jax.random.fold_in(dropout_key, index))
            return jax.tree.map(jnp.add, total, new), None

        micro = _microbatches(examples, recipe.accumulation)
        shapes = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], micro), dropout_key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(accumulate, zeros, (micro, jnp.arange(recipe.accumulation)))
        grads, metrics = jax.tree.map(lambda x: x / recipe.accumulation, total)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        ema = optax.incremental_update(params, ema, 1 - recipe.ema_decay)
    metrics["grad_norm"] = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    metrics["skipped"] = 1.0 - finite.astype(jnp.float32)
    new = TrainState(step=state.step, params=params, opt_state=opt_state, ema=ema)
    new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    return new.replace(step=state.step + 1), metrics


def eval_step(params: dict[str, Any], batch: Batch, *, model: RAR, recipe: Recipe) -> dict[str, jax.Array]:
    """Losses of a batch in the target order and in random order, without dropout.

    The random orders depend on the row's number alone, so that every evaluation uses the same ones.

    Args:
      params: the network's.
      batch: a training batch with two more entries: "row" int32 [B], each image's number in the data set, and
        "weight" float32 [B], 0 for padding.

    Returns:
      float32 scalars, sums over images of the mean over tokens: target_loss, target_accuracy, random_loss,
      random_accuracy; and count, the sum of weights.
    """
    key = jax.random.key(recipe.seed)
    keys = row_keys(key, batch["row"])
    target = jnp.broadcast_to(jnp.asarray(recipe.scan_order), batch["tokens"].shape)
    random = jax.vmap(jax.random.permutation, in_axes=(0, None))(keys, model.config.num_tokens)
    sums = {"count": batch["weight"].sum()}
    for name, orders in (("target", target), ("random", random)):
        visited = jnp.take_along_axis(batch["tokens"], orders, axis=1)
        losses, hits = token_losses(model, params, {"visited": visited, "label": batch["label"], "order": orders})
        sums[f"{name}_loss"] = losses.mean(axis=1) @ batch["weight"]
        sums[f"{name}_accuracy"] = hits.mean(axis=1) @ batch["weight"]
    return sums
