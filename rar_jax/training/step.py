"""The training step and the evaluation step, as pure functions of (state, batch)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rar_jax.models.rar import RAR
from rar_jax.orders import randomness, row_keys, sample_orders
from rar_jax.training.state import TrainState, moving_average, updated_if_finite

# {"tokens": int32 [B, T], "label": int32 [B]}
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The settings of a step, besides the model and the optimizer.

    Attributes:
      seed: seed of every draw of the run.
      scan_order: int32 [T], the target order.
      anneal_start, anneal_end: the steps between which r falls from 1 to its final value (`orders.randomness`).
      final_randomness: the final value of r.
      anneal_shape: how r falls, one of `orders.SHAPES`.
      label_dropout: probability that a label is replaced by the null class.
      accumulation: microbatches whose gradients are averaged for one update.
      ema_decay: decay of the moving average of the parameters; 0 for none.
    """

    seed: int
    scan_order: np.ndarray
    anneal_start: int
    anneal_end: int
    final_randomness: float = 0.0
    anneal_shape: str = "linear"
    label_dropout: float = 0.1
    accumulation: int = 1
    ema_decay: float = 0.0

    def randomness(self, step: jax.Array) -> jax.Array:
        """Returns r at a step, float32 []."""
        return randomness(step, self.anneal_start, self.anneal_end, self.final_randomness, self.anneal_shape)


def drop_labels(key: jax.Array, labels: jax.Array, rate: float, null_class: int) -> jax.Array:
    """Replaces each label of labels [B] by the null class with probability `rate`, independently for each row."""
    draws = jax.vmap(jax.random.uniform)(row_keys(key, jnp.arange(labels.shape[0])))
    return jnp.where(draws < rate, null_class, labels)


def draw_examples(
    model: RAR, step_config: StepConfig, step: jax.Array, batch: Batch
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Makes the training examples of a step: puts each image in its drawn order, and drops some labels.

    Every draw depends on (seed, step, the row's place in the global batch) alone, and not on the mesh or on gradient
    accumulation.

    Returns:
      {"visited": int32 [B, T], the tokens in the order visited, "label": int32 [B], "order": int32 [B, T]}, and a key
      for dropout.
    """
    key = jax.random.fold_in(jax.random.key(step_config.seed), step)
    order_key, label_key, dropout_key = jax.random.split(key, 3)
    r = step_config.randomness(step)
    orders = sample_orders(order_key, batch["label"].shape[0], jnp.asarray(step_config.scan_order), r)
    examples = {
        "visited": jnp.take_along_axis(batch["tokens"], orders, axis=1),
        "label": drop_labels(label_key, batch["label"], step_config.label_dropout, model.config.null_class),
        "order": orders,
    }
    return examples, dropout_key


def token_losses(
    model: RAR, params: dict[str, Any], examples: dict[str, jax.Array], dropout_key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Computes the cross-entropy of every predicted token, and whether the prediction is right.

    The last token of an order predicts nothing, so that the network does not read it.

    Args:
      model: the network.
      params: its parameters.
      examples: as `draw_examples` returns them.
      dropout_key: key for dropout; without one there is no dropout.

    Returns:
      float32 [B, T], cross-entropy in nats; and bool [B, T], true where the most likely code is the right one.
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
    """Splits examples [B, ...] into microbatches [count, B / count, ...].

    Microbatch i has the rows i, i + count, and so on, so that no row moves to another device.
    """
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), examples)


def _gradients(
    model: RAR, params: dict[str, Any], examples: dict[str, jax.Array], dropout_key: jax.Array, accumulation: int
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Returns the gradients of the mean loss, a tree like `params`, and the metrics loss and accuracy.

    With accumulation, all are means over the microbatches, each of which has its own dropout key.
    """

    def loss_fn(params, examples, key):
        losses, hits = token_losses(model, params, examples, key)
        return losses.mean(), {"loss": losses.mean(), "accuracy": hits.mean()}

    def gradients(examples, key):
        return jax.grad(loss_fn, has_aux=True)(params, examples, key)

    def accumulate(total, xs):
        examples, index = xs
        new = gradients(examples, jax.random.fold_in(dropout_key, index))
        return jax.tree.map(jnp.add, total, new), None

    if accumulation == 1:
        return gradients(examples, dropout_key)
    micro = _microbatches(examples, accumulation)
    shapes = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], micro), dropout_key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(accumulate, zeros, (micro, jnp.arange(accumulation)))
    return jax.tree.map(lambda x: x / accumulation, total)


def train_step(
    state: TrainState, batch: Batch, *, model: RAR, optimizer: optax.GradientTransformation, step_config: StepConfig
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Makes one update, or skips it if the loss or a gradient is not finite. The step is counted either way.

    Returns:
      The new state, and float32 scalars: loss (nats per token), accuracy, grad_norm (before clipping), and skipped, 1
      for a skipped update.
    """
    examples, dropout_key = draw_examples(model, step_config, state.step, batch)
    grads, metrics = _gradients(model, state.params, examples, dropout_key, step_config.accumulation)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        ema = moving_average(params, ema, step_config.ema_decay, state.step)
    metrics["grad_norm"] = optax.tree.norm(grads)
    new = TrainState(step=state.step, params=params, opt_state=opt_state, ema=ema)
    return updated_if_finite(state, new, metrics)


def eval_step(params: dict[str, Any], batch: Batch, *, model: RAR, step_config: StepConfig) -> dict[str, jax.Array]:
    """Computes the losses of a batch in the target order and in random order, without dropout.

    The random orders depend on the images' numbers alone, so that every evaluation uses the same ones.

    Args:
      params: the network's parameters.
      batch: a training batch with two more entries: "number" int32 [B], each image's number in the data set, and
        "weight" float32 [B], 0 for padding and 1 for images.

    Returns:
      float32 scalars, sums over images of the mean over tokens: target_loss, target_accuracy, random_loss,
      random_accuracy; and count, the number of images.
    """
    keys = row_keys(jax.random.key(step_config.seed), batch["number"])
    target = jnp.broadcast_to(jnp.asarray(step_config.scan_order), batch["tokens"].shape)
    random = jax.vmap(jax.random.permutation, in_axes=(0, None))(keys, model.config.num_tokens)
    sums = {"count": batch["weight"].sum()}
    for name, orders in (("target", target), ("random", random)):
        visited = jnp.take_along_axis(batch["tokens"], orders, axis=1)
        losses, hits = token_losses(model, params, {"visited": visited, "label": batch["label"], "order": orders})
        sums[f"{name}_loss"] = losses.mean(axis=1) @ batch["weight"]
        sums[f"{name}_accuracy"] = hits.mean(axis=1) @ batch["weight"]
    return sums
