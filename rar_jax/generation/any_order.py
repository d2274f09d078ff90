"""Measures what a model can do in any order: drawing groups of tokens, completing images and classifying them."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rar_jax.data.tokenizers import decoded
from rar_jax.evaluation.sample_scores import SampleScorer
from rar_jax.generation.generator import Generator
from rar_jax.orders.drawn import known_first
from rar_jax.parallel.mesh import fetch
from rar_jax.sampling.groups import SCHEDULES
from rar_jax.sampling.options import Options
from rar_jax.sampling.pace import accepted_shares, tokens_per_pass
from rar_jax.sampling.sampler import interleaved_labels, padded_batches, sample_tokens

# What a completion draws: half of the tokens, or all of them, which is sampling in random order.
_MASKS = ("random_half", "lower_half", "all")
# Numbers of random orders that a classification averages over; 0 is the scan order.
_NUM_ORDERS = (0, 1, 4, 16)


class Decoding(NamedTuple):
    """A way to sample. All fields but the model and the seed are those of `sampling.options.Options`."""

    model: str
    guidance: str
    scan_order: str
    schedule: str
    steps: int
    verify: bool
    seed: int

    def baseline(self, num_tokens: int) -> "Decoding":
        """Returns one token per pass in the same order."""
        return self._replace(schedule="uniform", steps=num_tokens, verify=False)


class Completion(NamedTuple):
    """A way to complete held-out images, in random order."""

    model: str
    guidance: str
    masked: str
    seed: int

    def baseline(self, num_tokens: int) -> "Completion":
        """Returns sampling of whole images."""
        del num_tokens
        return self._replace(masked="all")


class Classification(NamedTuple):
    """A way to classify held-out images: by the mixture over random orders, or in the scan order (0 orders)."""

    model: str
    orders: int
    seed: int

    def baseline(self, num_tokens: int) -> "Classification":
        """Returns classification in the scan order."""
        del num_tokens
        return self._replace(orders=0, seed=0)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The settings to measure: every combination.

    Attributes:
      scan_orders: orders, fixed or drawn.
      steps: numbers of passes that draw all tokens.
      guidance: schedules of the guidance weight.
      seeds: number of seeds, from 0.
    """

    scan_orders: Sequence[str]
    steps: Sequence[int]
    guidance: Sequence[str]
    seeds: int


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model, and what its images are compared with.

    Attributes:
      generators: name -> model. The first is the one that is measured. Another one is sampled in its scan order, one
        token per pass, for comparison, and classifies in its scan order.
      scorer: scores samples.
      completion_scorer: scores completions of the held-out images, against other images than these.
      tokens: int [N, T], the held-out images.
      labels: int [N], their classes.
      num: number of samples for each way to sample.
      batch_size: number of images decoded at once.
    """

    generators: Mapping[str, Generator]
    scorer: SampleScorer
    completion_scorer: SampleScorer
    tokens: np.ndarray
    labels: np.ndarray
    num: int
    batch_size: int

    @property
    def name(self) -> str:
        """The name of the model that is measured."""
        return next(iter(self.generators))

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens of an image."""
        return self.tokens.shape[1]

    def decodings(self, grid: Grid) -> list[Decoding]:
        """Returns all ways to sample: each order, schedule and number of steps; and those of the other models.

        Raises:
          UserError: a setting cannot be used.
        """
        cells = [
            Decoding(self.name, guide, order, schedule, number, False, 0)
            for guide, order, number, schedule in itertools.product(
                grid.guidance, grid.scan_orders, grid.steps, SCHEDULES
            )
            # One token per pass is the same in every schedule.
            if number != self.num_tokens or schedule == "uniform"
        ]
        cells += [
            Decoding(name, guide, self.generators[name].options().scan_order, "uniform", self.num_tokens, False, 0)
            for guide, name in itertools.product(grid.guidance, self._others())
        ]
        for cell in cells:
            self._options(cell).plan(self.generators[cell.model].sampler.model.config)
        return [cell._replace(seed=seed) for cell in cells for seed in range(grid.seeds)]

    def verified_decodings(self, grid: Grid) -> list[Decoding]:
        """Returns the ways to sample groups with verification: each order and number of steps below T, with seed 0."""
        return [
            Decoding(self.name, guide, order, "uniform", number, True, 0)
            for guide, order, number in itertools.product(grid.guidance, grid.scan_orders, grid.steps)
            if number != self.num_tokens
        ]

    def completions(self, grid: Grid) -> list[Completion]:
        """Returns the ways to complete the held-out images."""
        cells = [Completion(self.name, guide, masked, 0) for guide in grid.guidance for masked in _MASKS]
        return [cell._replace(seed=seed) for cell in cells for seed in range(grid.seeds)]

    def classifications(self, grid: Grid) -> list[Classification]:
        """Returns the ways to classify the held-out images. The other models use their scan order only."""
        own = [
            Classification(self.name, orders, seed)
            for orders in _NUM_ORDERS
            for seed in range(grid.seeds if orders else 1)
        ]
        return own + [Classification(name, 0, 0) for name in self._others()]

    def _others(self) -> list[str]:
        return [name for name in self.generators if name != self.name]

    def _options(self, cell: Decoding) -> Options:
        given = {name: value for name, value in cell._asdict().items() if name not in ("model", "seed")}
        return self.generators[cell.model].options(**given)

    def decode(self, cell: Decoding, on_batch: Callable[[int], None]) -> dict[str, float]:
        """Returns the scores of samples, and the mean number of tokens per pass if they are verified."""
        generator, paces = self.generators[cell.model], []
        labels = interleaved_labels(self.num, generator.sampler.model.config.num_classes)
        tokens = sample_tokens(
            generator.sampler, labels, self._options(cell), seed=cell.seed, batch_size=self.batch_size,
            on_batch=on_batch, on_pace=paces.append,
        )  # fmt: skip
        scores = self.scorer.score(decoded(generator.tokenizer, tokens), labels)
        if paces:
            scores["tokens_per_pass"] = tokens_per_pass(paces, self.num_tokens)
            scores |= {f"accepted_{place}": share for place, share in accepted_shares(paces).items()}
        return scores

    def complete(self, cell: Completion, on_batch: Callable[[int], None]) -> dict[str, float]:
        """Returns the scores of completions, and the loss of the true tokens that they replace (nats per token)."""
        generator = self.generators[cell.model]
        options = generator.options(
            scan_order="random", guidance=cell.guidance, steps=0, schedule="uniform", verify=False
        )
        masked = _masks(cell.masked, cell.seed, self.tokens.shape)
        tokens = sample_tokens(
            generator.sampler, self.labels, options, seed=cell.seed, batch_size=self.batch_size,
            edited=(self.tokens, masked), on_batch=on_batch,
        )  # fmt: skip
        scores = self.completion_scorer.score(decoded(generator.tokenizer, tokens), self.labels)
        return scores | {"masked_loss": self._masked_loss(generator, masked, cell.seed)}

    def _masked_loss(self, generator: Generator, masked: np.ndarray, seed: int) -> float:
        """Returns the mean loss of masked tokens in random order, given all others."""
        sampler, options = generator.sampler, generator.options(scan_order="random")
        total, batch_size = 0.0, sampler.batch_size(self.batch_size, len(masked))
        for numbers, padded in padded_batches(len(masked), batch_size):
            orders = known_first(jnp.asarray(sampler.orders(padded, seed, options)), jnp.asarray(~masked[padded]))
            found = fetch(sampler.log_likelihoods(self.labels[padded], self.tokens[padded], np.asarray(orders)))
            total -= float(found[: len(numbers)][masked[numbers]].sum())
        return total / int(masked.sum())

    def classify(self, cell: Classification, on_batch: Callable[[int], None]) -> dict[str, float]:
        """Returns the share of the held-out images whose class is the most likely one."""
        # The k-th order is drawn from seed + k, and orders of different seeds must differ.
        seed = cell.seed * max(_NUM_ORDERS)
        found = self.generators[cell.model].classify(
            self.tokens, orders=cell.orders, seed=seed, batch_size=self.batch_size
        )
        on_batch(len(found))
        return {"accuracy": float((found.argmax(axis=1) == self.labels).mean())}


def _masks(name: str, seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Returns the tokens that a completion draws, bool [N, T]."""
    half = shape[1] // 2
    if name == "random_half":
        return np.random.default_rng(seed).random(shape).argsort(axis=1) < half
    return np.broadcast_to(np.arange(shape[1]) >= (half if name == "lower_half" else 0), shape)
