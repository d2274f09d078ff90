"""The likelihood of images under a model, and the classes that it implies."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from rar_jax.data.records import HostBatch
from rar_jax.parallel.mesh import fetch
from rar_jax.sampling.options import MAX_SEED, Options
from rar_jax.sampling.sampler import Sampler, padded_batches


class Likelihood(NamedTuple):
    """Log-likelihoods of N images, in nats.

    Attributes:
      orders: float32 [N, K], log p(x | class, order) of each image in each of its K orders.
      tokens: float32 [N, T], the mean over orders of log p of each token, in grid order.
    """

    orders: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean over orders, float32 [N]."""
        return self.orders.mean(axis=1)

    @property
    def mixture(self) -> np.ndarray:
        """log mean exp over orders, float32 [N]: in expectation a lower bound of the mixture of all orders."""
        largest = self.orders.max(axis=1)
        return largest + np.log(np.exp(self.orders - largest[:, None]).mean(axis=1))


@dataclasses.dataclass(frozen=True)
class LikelihoodScorer:
    """Computes log-likelihoods of images in batches of one shape, which all devices of the model share.

    Attributes:
      sampler: the model.
      options: its scan order is used. If it is one that images draw, each image has `num_orders` of them.
      num_orders: K; 1 for a fixed scan order.
      seed: seed of the orders. The k-th order of all images is drawn from seed + k.
      batch_size: B, a multiple of the number of devices. Smaller batches are padded.
      on_batch: called with n after each batch of n images in one order and with one class.
    """

    sampler: Sampler
    options: Options
    num_orders: int
    seed: int
    batch_size: int
    on_batch: Callable[[int], None]

    def score(self, tokens: np.ndarray, labels: np.ndarray, first: int = 0) -> Likelihood:
        """Computes the log-likelihood of images given their classes.

        Args:
          tokens: int [N, T], codes in grid order.
          labels: int [N], the class of each image.
          first: number of the first image. The orders that an image draws depend on its number.
        """
        tokens, labels = np.asarray(tokens, np.int32), np.asarray(labels, np.int32)
        sums, of_tokens = np.zeros((len(tokens), self.num_orders), np.float32), np.zeros(tokens.shape, np.float32)
        for numbers, padded in padded_batches(len(tokens), self.batch_size):
            for k in range(self.num_orders):
                orders = self.sampler.orders(first + padded, (self.seed + k) % (MAX_SEED + 1), self.options)
                found = fetch(self.sampler.log_likelihoods(labels[padded], tokens[padded], orders))[: len(numbers)]
                sums[numbers, k] = found.sum(axis=1)
                of_tokens[numbers] += found / self.num_orders
                self.on_batch(len(numbers))
        return Likelihood(sums, of_tokens)

    def score_classes(self, tokens: np.ndarray, first: int = 0) -> np.ndarray:
        """Computes the log-likelihood of images given each class: float32 [N, C], the mixtures over orders."""
        found = [
            self.score(tokens, np.full(len(tokens), label), first).mixture
            for label in range(self.sampler.model.config.num_classes)
        ]
        return np.stack(found, axis=1)


class Summary(NamedTuple):
    """The log-likelihoods of many images, in nats.

    Attributes:
      mean: float32 [N], the mean over orders.
      mixture: float32 [N], log mean exp over orders.
      positions: float64 [T], the mean over images and orders of each token, in grid order.
      accuracy: the share of images whose class is the most likely one, or None if they were not classified.
    """

    mean: np.ndarray
    mixture: np.ndarray
    positions: np.ndarray
    accuracy: float | None


def summarise(scorer: LikelihoodScorer, batches: Iterable[HostBatch], classify: bool) -> Summary:
    """Computes the log-likelihoods of images as they are read. It keeps one batch of tokens in memory.

    Args:
      scorer: the model.
      batches: at least one. All but the last have the scorer's batch size.
      classify: whether to classify the images too.
    """
    means, mixtures, positions, count, correct = [], [], 0.0, 0, 0
    for batch in batches:
        tokens, labels = batch["tokens"], batch["label"]
        found = scorer.score(tokens, labels, count)
        means.append(found.mean)
        mixtures.append(found.mixture)
        positions += found.tokens.sum(axis=0, dtype=np.float64)
        if classify:
            correct += int((scorer.score_classes(tokens, count).argmax(axis=1) == labels).sum())
        count += len(labels)
    accuracy = correct / count if classify else None
    return Summary(np.concatenate(means), np.concatenate(mixtures), positions / count, accuracy)


def posterior(log_likelihood: np.ndarray) -> np.ndarray:
    """Returns the probability of each class by Bayes' rule with equal priors: log p(x | c) [N, C] -> float64 [N, C]."""
    shifted = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True), dtype=np.float64)
    return shifted / shifted.sum(axis=1, keepdims=True)
