"""The likelihood of images under a model, and the classes that it implies."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rar_jax.parallel.mesh import fetch
from rar_jax.sampling.options import Options
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


def log_likelihoods(
    sampler: Sampler,
    tokens: np.ndarray,
    labels: np.ndarray,
    options: Options,
    num_orders: int,
    *,
    seed: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Likelihood:
    """Computes the log-likelihood of images given their classes.

    Args:
      sampler: the model.
      tokens: int [N, T], codes in grid order.
      labels: int [N], the class of each image.
      options: its scan order is used. If it is one that images draw, each image has `num_orders` of them.
      num_orders: K; 1 for a fixed scan order.
      seed: seed of the orders. The k-th order of all images is drawn from seed + k.
      batch_size: images read at once.
      on_batch: called with n after each batch of n images in one order.
    """
    tokens, labels = np.asarray(tokens, np.int32), np.asarray(labels, np.int32)
    batch_size = sampler.batch_size(batch_size, len(tokens))
    sums, of_tokens = np.zeros((len(tokens), num_orders), np.float32), np.zeros(tokens.shape, np.float32)
    for numbers, padded in padded_batches(len(tokens), batch_size):
        for k in range(num_orders):
            orders = sampler.orders(padded, seed + k, options)
            found = fetch(sampler.log_likelihoods(labels[padded], tokens[padded], orders))[: len(numbers)]
            sums[numbers, k] = found.sum(axis=1)
            of_tokens[numbers] += found / num_orders
            on_batch(len(numbers))
    return Likelihood(sums, of_tokens)


def posterior(log_likelihood: np.ndarray) -> np.ndarray:
    """Returns the probability of each class by Bayes' rule with equal priors: log p(x | c) [N, C] -> float64 [N, C]."""
    shifted = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True), dtype=np.float64)
    return shifted / shifted.sum(axis=1, keepdims=True)
