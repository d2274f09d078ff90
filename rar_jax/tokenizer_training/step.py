"""The training step of a tokenizer, as a pure function of (state, batch)."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rar_jax.models.inception import InceptionV3
from rar_jax.models.vqgan import VQGAN
from rar_jax.tokenizer_config import LossConfig, QuantizerConfig
from rar_jax.tokenizer_training.discriminator import Discriminator
from rar_jax.tokenizer_training.losses import (
    adversarial_loss,
    balance,
    discriminator_loss,
    inception_distance,
    reconstruction_losses,
)
from rar_jax.tokenizer_training.quantizers import quantizer_loss, restarted, straight_through, updated_use, use_scores
from rar_jax.tokenizer_training.state import DiscriminatorState, TokenizerState
from rar_jax.training.state import moving_average, updated_if_finite

# {"image": uint8 [B, H, W, 3]}
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TokenizerStep:
    """The networks, the losses and the settings of a step.

    Attributes:
      model: the tokenizer.
      discriminator: the discriminator, or None without one.
      inception: the network of the perceptual distance, or None without one.
      optimizer: the optimizer of the tokenizer, and of the discriminator.
      quantizer, loss: the sections of the config.
      ema_decay: decay of the moving average of the parameters.
      seed: seed of every draw of the run.
    """

    model: VQGAN
    discriminator: Discriminator | None
    inception: InceptionV3 | None
    optimizer: optax.GradientTransformation
    quantizer: QuantizerConfig
    loss: LossConfig
    ema_decay: float
    seed: int


def encode(model: VQGAN, params: dict[str, Any], images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Encodes images [B, H, W, 3]: latents [B, h, w, d], codes int32 [B, h, w], and their vectors [B, h, w, d]."""

    def method(vqgan, images):
        latents = vqgan.encoder(images)
        codes = vqgan.nearest_codes(latents)
        return latents, codes, vqgan.quantize(codes)

    return model.apply({"params": params}, images, method=method)


def train_step(
    state: TokenizerState, batch: Batch, step: TokenizerStep, inception: dict[str, Any] | None = None
) -> tuple[TokenizerState, Metrics]:
    """Makes one update, or skips it if the loss or a gradient is not finite. The step is counted either way.

    The discriminator judges the same reconstructions before their update.

    Args:
      state: the state before the update.
      batch: the images.
      step: the networks, the losses and the settings.
      inception: the weights of `step.inception`, if there is one.

    Returns:
      The new state, and float32 scalars: loss (of reconstruction and quantizer, without the adversarial term), its
      parts, the use of the codebook, grad_norm (before clipping), and skipped, 1 for a skipped update.
    """
    originals = batch["image"].astype(jnp.float32) / 255
    perceptual = (
        functools.partial(inception_distance, step.inception, inception) if step.inception is not None else None
    )

    def autoencode(params):
        latents, codes, entries = encode(step.model, params, originals)
        loss = quantizer_loss(step.quantizer, latents, entries)
        latents_in = straight_through(latents, entries)
        images = step.model.apply({"params": params}, latents_in, method=lambda vqgan, x: vqgan.decoder(x))
        return (images, loss), (latents, codes)

    def compare(images):
        return reconstruction_losses(step.loss, images, originals, perceptual)

    (images, loss), pullback, (latents, codes) = jax.vjp(autoencode, state.params, has_aux=True)
    (reconstruction, parts), gradient = jax.value_and_grad(compare, has_aux=True)(images)
    metrics = {"loss": reconstruction + loss, "quantizer": loss} | parts
    norms, discriminator = [], None
    if state.discriminator is not None:

        def last_layer(gradient):
            # The compiler leaves out the gradients of all other layers.
            return pullback((gradient, jnp.zeros_like(loss)))[0]["decoder"]["conv_out"]["kernel"]

        adversary = _adversary(step, state, images, originals)
        weight = step.loss.adversarial * adversary.on * balance(last_layer(gradient), last_layer(adversary.gradient))
        gradient += weight * adversary.gradient
        discriminator, norms = adversary.discriminator, [adversary.norm]
        metrics |= adversary.losses | {"adversarial_weight": weight}
    (grads,) = pullback((gradient, jnp.ones_like(loss)))
    metrics["grad_norm"] = optax.tree.norm([optax.tree.norm(grads), *norms])
    new = _updated(step, state, grads, latents, codes).replace(discriminator=discriminator)
    return updated_if_finite(state, new, metrics | use_scores(step.quantizer, new.use))


class _Adversary(NamedTuple):
    """What the discriminator adds to a step; zeros before its start step.

    Attributes:
      on: float32 [], 1 from the start step on.
      gradient: the gradient of the adversarial loss, float32 [B, H, W, 3].
      discriminator: the discriminator after its update.
      norm: float32 [], the norm of the discriminator's gradient.
      losses: the losses by name, float32 [].
    """

    on: jax.Array
    gradient: jax.Array
    discriminator: DiscriminatorState
    norm: jax.Array
    losses: Metrics


def _adversary(step: TokenizerStep, state: TokenizerState, images: jax.Array, originals: jax.Array) -> _Adversary:
    """Judges reconstructions and updates the discriminator."""

    def judge(params, images):
        return step.discriminator.apply({"params": params}, images)

    def active(discriminator):
        adversarial, gradient = jax.value_and_grad(lambda x: adversarial_loss(judge(discriminator.params, x)))(images)
        loss, grads = jax.value_and_grad(
            lambda params: discriminator_loss(judge(params, originals), judge(params, images))
        )(discriminator.params)
        updates, opt_state = step.optimizer.update(grads, discriminator.opt_state, discriminator.params)
        discriminator = DiscriminatorState(optax.apply_updates(discriminator.params, updates), opt_state)
        losses = {"adversarial": adversarial, "discriminator": loss}
        return _Adversary(jnp.ones(()), gradient, discriminator, optax.tree.norm(grads), losses)

    def idle(discriminator):
        zero = jnp.zeros(())
        losses = {"adversarial": zero, "discriminator": zero}
        return _Adversary(zero, jnp.zeros_like(images), discriminator, zero, losses)

    return jax.lax.cond(state.step >= step.loss.adversarial_start, active, idle, state.discriminator)


def _updated(
    step: TokenizerStep, state: TokenizerState, grads: dict[str, Any], latents: jax.Array, codes: jax.Array
) -> TokenizerState:
    """Returns the state with updated parameters, moving average and codebook, before the step is counted."""
    updates, opt_state = step.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = moving_average(params, state.ema, step.ema_decay, state.step)
    use = updated_use(state.use, codes)
    if step.quantizer.kind == "vq" and step.quantizer.restart_every:
        key = jax.random.fold_in(jax.random.key(step.seed), state.step)
        codebooks = (params["quantize"]["embedding"], ema["quantize"]["embedding"])
        due = (state.step + 1) % step.quantizer.restart_every == 0
        use, codebooks = jax.lax.cond(
            due, lambda: restarted(step.quantizer, key, use, latents, codebooks), lambda: (use, codebooks)
        )
        params, ema = (
            each | {"quantize": {"embedding": codebook}}
            for each, codebook in zip((params, ema), codebooks, strict=True)
        )
    return state.replace(params=params, opt_state=opt_state, ema=ema, use=use)
