"""A trained model that generates images: the class behind `rar_jax.generate`."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from rar_jax.config import Config, sample_options
from rar_jax.data.class_names import find_classes
from rar_jax.data.tokenizers import Tokenizer, decoded
from rar_jax.errors import UserError
from rar_jax.generation.editing import token_masks
from rar_jax.generation.likelihood import Likelihood, LikelihoodScorer, posterior
from rar_jax.generation.painting import Painting
from rar_jax.sampling.options import Options
from rar_jax.sampling.paint import paint
from rar_jax.sampling.sampler import Sampler, check_labels, pad_numbers, sample_tokens

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Generator:
    """A trained model, ready to sample.

    Attributes:
      config: the config of the run that trained it; `config.sample` has the default sampling options.
      step: the checkpoint's step.
      identity: 12 hexadecimal digits that identify the checkpoint or file (`Weights.identity`).
      sampler: the network and its parameters, on the devices.
      tokenizer: decodes tokens to images.
      class_names: names of the classes in the order of the labels, or None if they are not known.
      final_randomness: r after the checkpoint's last update; 1 if every update had r = 1.
      random_loss: the run's last held-out loss in random order, nats per token, or None if it is not known.
    """

    config: Config
    step: int
    identity: str
    sampler: Sampler
    tokenizer: Tokenizer
    class_names: tuple[str, ...] | None
    final_randomness: float
    random_loss: float | None

    @property
    def origin(self) -> dict[str, str | int]:
        """What the plan of a job stores of the model: JSON values. Each dtype and kind of device rounds differently."""
        return {
            "dtype": jnp.dtype(self.sampler.model.dtype).name,
            "platform": self.sampler.mesh.devices.flat[0].platform,
            "model": f"{self.config.name}-{self.identity}",
            "step": self.step,
            "tokenizer": self.tokenizer.fingerprint,
        }

    def labels(self, classes: Sequence[int | str]) -> np.ndarray:
        """Returns the labels, int32 [N], of classes that are given by name or by index.

        Raises:
          UserError: no class is given, an index is not in 0..C-1, or a name matches no class or several.
        """
        return check_labels(find_classes(classes, self.class_names), self.sampler.model.config.num_classes)

    def options(self, **given: Any) -> Options:
        """Returns the config's sampling options with some of them replaced.

        Raises:
          UserError: an option is unknown or out of range.
        """
        default = sample_options(self.config)
        names = [field.name for field in dataclasses.fields(default)]
        for name in given:
            if name not in names:
                raise UserError(f"there is no option {name!r}: the options are {', '.join(names)}")
        return dataclasses.replace(default, **given)

    def generate(
        self,
        classes: Sequence[int | str],
        *,
        seed: int = 0,
        batch_size: int = 256,
        **options: Any,
    ) -> np.ndarray:
        """Samples one image for each class given.

        Args:
          classes: N classes, by index or by name.
          seed: seed of all draws.
          batch_size: images sampled at once; the decode loop is compiled once for each batch size.
          options: fields of `sampling.options.Options`; the config's values are the defaults.

        Returns:
          uint8 [N, H, W, 3].

        Raises:
          UserError: a class or an option is out of range.
        """
        options = self.options(**options)
        self.warn_if_not_trained(options)
        tokens = sample_tokens(self.sampler, self.labels(classes), options, seed=seed, batch_size=batch_size)
        return np.concatenate(list(decoded(self.tokenizer, tokens)))

    def edit(
        self,
        images: np.ndarray,
        masks: np.ndarray,
        classes: Sequence[int | str],
        *,
        margin: int = 0,
        paste: bool = True,
        seed: int = 0,
        batch_size: int = 256,
        on_batch: Callable[[int], None] = lambda images: None,
        **options: Any,
    ) -> np.ndarray:
        """Draws a part of each image again, given the rest: inpainting, outpainting, another class for a region.

        Args:
          images: uint8 [N, H, W, 3], of the model's size.
          masks: bool [H, W] or [N, H, W], the pixels to draw again. A token is drawn if any of its pixels is.
          classes: one class for each image, by index or by name.
          margin: rings of tokens around the masked ones that are drawn too.
          paste: put the pixels outside the mask back, instead of showing the tokenizer's reconstruction of them.
          seed: seed of all draws.
          batch_size: images edited at once.
          on_batch: called with n after each batch of n images.
          options: fields of `sampling.options.Options`; the config's values are the defaults.

        Returns:
          uint8 [N, H, W, 3].

        Raises:
          UserError: a class, an image, a mask or an option cannot be used.
        """
        labels, options = self._labels_for(images, classes), self.options(**options)
        self.warn_if_not_trained(options, editing=True)
        masked = token_masks(masks, self.tokenizer, len(images), margin)
        tokens = sample_tokens(
            self.sampler,
            labels,
            options,
            seed=seed,
            batch_size=batch_size,
            edited=(self._encode(images), masked),
            on_batch=on_batch,
        )
        edited = np.concatenate(list(decoded(self.tokenizer, tokens)))
        return np.where(np.broadcast_to(masks, edited.shape[:3])[..., None], edited, images) if paste else edited

    def paint(
        self,
        classes: Sequence[int | str],
        *,
        edited: tuple[np.ndarray, np.ndarray] | None = None,
        margin: int = 0,
        every: int = 1,
        seed: int = 0,
        **options: Any,
    ) -> Iterator[Painting]:
        """Samples or edits images as `generate` and `edit` do, in one batch, and yields while they are drawn.

        A caller that stops iterating stops the work.

        Args:
          classes: N classes, by index or by name.
          edited: images uint8 [N, H, W, 3] and masks bool [H, W] or [N, H, W], to draw a part of images again.
          margin: see `edit`.
          every: number of passes of the network after which to yield.
          seed: seed of all draws.
          options: fields of `sampling.options.Options`; the config's values are the defaults.

        Yields:
          How far the images are. The last ones are complete.

        Raises:
          UserError: a class, an image, a mask or an option cannot be used.
        """
        labels, options, pasted = self.labels(classes), self.options(**options), None
        self.warn_if_not_trained(options, editing=edited is not None)
        padded = pad_numbers(np.arange(len(labels)), self.sampler.batch_size(len(labels), len(labels)))
        if edited is not None:
            images, labels = edited[0], self._labels_for(edited[0], classes)
            tokens, masked = self._encode(images), token_masks(edited[1], self.tokenizer, len(images), margin)
            pasted = images, np.broadcast_to(edited[1], images.shape[:3])
            edited = tokens[padded], masked[padded]
        for painted in paint(self.sampler, labels[padded], padded, seed, options, every, edited):
            yield Painting(*(each[: len(labels)] for each in painted), self.tokenizer, pasted)

    def log_likelihood(
        self,
        images: np.ndarray,
        classes: Sequence[int | str],
        *,
        orders: int = 0,
        seed: int = 0,
        batch_size: int = 256,
    ) -> Likelihood:
        """Computes log p(image | class).

        Args:
          images: uint8 [N, H, W, 3], or their tokens int [N, T] in grid order.
          classes: one class for each image, by index or by name.
          orders: number of random orders for each image; 0 for the run's scan order.
          seed: seed of the orders.
          batch_size: images read at once.

        Raises:
          UserError: a class, an image or a token cannot be used.
        """
        tokens, labels = self._tokens(images), self._labels_for(images, classes)
        scorer = self.likelihood_scorer(len(tokens), orders, seed=seed, batch_size=batch_size)
        return scorer.score(tokens, labels)

    def classify(self, images: np.ndarray, *, orders: int = 0, seed: int = 0, batch_size: int = 256) -> np.ndarray:
        """Returns the probability of each class, by Bayes' rule with equal priors.

        Args:
          images: uint8 [N, H, W, 3], or their tokens int [N, T] in grid order.
          orders, seed, batch_size: see `log_likelihood`. All classes are read in the same orders.

        Returns:
          float64 [N, C].

        Raises:
          UserError: an image or a token cannot be used.
        """
        tokens = self._tokens(images)
        scorer = self.likelihood_scorer(len(tokens), orders, seed=seed, batch_size=batch_size)
        return posterior(scorer.score_classes(tokens))

    def likelihood_scorer(
        self,
        num_images: int,
        orders: int = 0,
        *,
        seed: int = 0,
        batch_size: int = 256,
        on_batch: Callable[[int], None] = lambda images: None,
    ) -> LikelihoodScorer:
        """Returns what computes the likelihoods of images, also if they are not in memory at once.

        Args:
          num_images: number of images, which limits the batch size.
          orders, seed, batch_size: see `log_likelihood`.
          on_batch: called with n after each batch of n images in one order and with one class.
        """
        # Likelihoods are read one token at a time, whatever the run's config says of samples.
        options = self.options(
            steps=0, schedule="uniform", verify=False, **({"scan_order": "random"} if orders else {})
        )
        self.warn_if_not_trained(options)
        batch_size = self.sampler.batch_size(batch_size, num_images)
        return LikelihoodScorer(self.sampler, options, max(orders, 1), seed, batch_size, on_batch)

    def _tokens(self, images: np.ndarray) -> np.ndarray:
        """Returns the tokens of images, int [N, T], which may be given as tokens.

        Raises:
          UserError: they are neither tokens nor images of this model, or there are none.
        """
        model = self.sampler.model.config
        if not len(images):
            raise UserError("no images are given: give at least one")
        if images.ndim != 2:
            return self._encode(images)
        if images.shape[1] != model.num_tokens or images.dtype.kind not in "iu":
            raise UserError(
                f"tokens of shape {images.shape} and dtype {images.dtype} must be integers of the shape "
                f"(N, {model.num_tokens})"
            )
        if not 0 <= images.min() <= images.max() < model.codebook_size:
            raise UserError(
                f"tokens from {images.min()} to {images.max()} must be codes from 0 to {model.codebook_size - 1}"
            )
        return images

    def _encode(self, images: np.ndarray) -> np.ndarray:
        """Returns the tokens of images, int [N, T]. Raises a `UserError` if they are no images of this model."""
        side = self.tokenizer.grid_side * self.tokenizer.downsampling
        if images.shape[1:] != (side, side, 3) or images.dtype != np.uint8:
            raise UserError(
                f"images of shape {images.shape} and dtype {images.dtype} must be uint8, from 0 to 255, of the shape "
                f"(N, {side}, {side}, 3)"
            )
        # Several results of one image are copies of it.
        first: dict[bytes, int] = {}
        same = [first.setdefault(image.tobytes(), number) for number, image in enumerate(images)]
        different = [*first.values()]
        return self.tokenizer.encode(images[different])[np.searchsorted(different, same)]

    def _labels_for(self, images: np.ndarray, classes: Sequence[int | str]) -> np.ndarray:
        """Returns the label of each image, int32 [N]. Raises a `UserError` if there is not one class for each."""
        labels = self.labels(classes)
        if len(labels) != len(images):
            raise UserError(f"{len(labels)} classes are given for {len(images)} images: give one for each image")
        return labels

    def order_warning(self, options: Options, editing: bool = False) -> str | None:
        """Returns a warning if the model was not trained, at the end, in the orders that these options use.

        Raises:
          UserError: the options do not go with the model or with editing.
        """
        plan = options.plan(self.sampler.model.config, one_size=editing)
        # Groups that are verified have the distribution of one token per pass, whatever the model predicts for them.
        groups = max(plan.sizes) > 1 and not plan.verify
        other = groups or options.scan_order != self.options().scan_order
        if not (editing or other) or self.final_randomness > 0:
            return None
        loss = "" if self.random_loss is None else f": its held-out loss in random order is {self.random_loss:.2f} nats"
        return (
            "groups, other scan orders and editing need a model that keeps random orders, and this one was annealed to "
            f"its scan order{loss}; train it with --config.permutation.final_randomness=0.5"
        )

    def warn_if_not_trained(self, options: Options, editing: bool = False) -> None:
        """Logs the warning about orders (`order_warning`)."""
        if (warning := self.order_warning(options, editing)) is not None:
            _log.warning("%s", warning)
