"""The sampling options: the section of a config, and the options of one call. This module imports no network."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rar_jax.errors import UserError
from rar_jax.fields import check_fields, setting
from rar_jax.models.sizes import ModelConfig
from rar_jax.orders import SCAN_ORDERS, scan_order
from rar_jax.sampling.choose import Choice
from rar_jax.sampling.groups import SCHEDULES, Plan, group_sizes
from rar_jax.sampling.guidance import GUIDANCE_SCHEDULES, guidance_weights

# A PRNG key holds 32 bits of a seed.
MAX_SEED = 2**32 - 1
# Orders that each image draws for itself.
DRAWN_ORDERS = ("random", "spread")
SAMPLING_ORDERS = (*SCAN_ORDERS, *DRAWN_ORDERS)


class TracedOptions(NamedTuple):
    """The options that are arguments of a compiled program, so that other values do not compile it again.

    Attributes:
      key: a typed PRNG key [], the same for the whole job.
      order: int32 [T], the scan order; None if each image draws one.
      weights: float32 [T], the guidance weight of each token; None decodes without guidance, at half the cost.
      choice: how tokens are drawn.
    """

    key: jax.Array
    order: jax.Array | None
    weights: jax.Array | None
    choice: Choice


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Sampling (`sampling.guidance`, `sampling.choose`)."""

    guidance: str = setting(
        "pow_cosine", "Schedule of the guidance weight. none disables guidance, at half the cost.",
        one_of=GUIDANCE_SCHEDULES,
    )  # fmt: skip
    guidance_scale: float = setting(
        16.0, "Guidance weight at the end of the schedule. 1 is no guidance.", at_least=0, below=math.inf
    )
    guidance_power: float = setting(
        2.75, "Power of pow_cosine. With a larger power guidance starts later.", above=0, below=math.inf
    )
    temperature: float = setting(
        1.0, "Divisor of the logits. 0 takes the most likely token.", at_least=0, below=math.inf
    )
    top_k: int = setting(0, "Draw only from the top_k most likely tokens. 0 draws from all.", at_least=0)
    top_p: float = setting(
        1.0,
        "Draw only from the most likely tokens whose probabilities sum to top_p. 1 draws from all.",
        above=0,
        at_most=1,
    )
    steps: int = setting(
        0,
        "Number of passes N of the network that draw all T tokens of an image. 0 draws one token per pass. With verify "
        "and in editing, groups have ceil(T / N) tokens, so that there can be fewer than N groups.",
        at_least=0,
    )
    schedule: str = setting(
        "uniform", "Sizes of the groups of tokens that passes draw. cosine begins with small groups.", one_of=SCHEDULES
    )
    verify: bool = setting(
        False,
        "Verify the tokens of a group in the next pass and draw rejected ones again. The distribution is then as with "
        "one token per pass.",
    )


@dataclasses.dataclass(frozen=True)
class Options(SampleConfig):
    """The sampling options of a config and a scan order. The values are checked on construction."""

    scan_order: str = setting(
        "row_major",
        "Order in which tokens are decoded. random and spread give each image an order of its own.",
        one_of=SAMPLING_ORDERS,
    )

    def __post_init__(self):
        """Raises a `UserError` that names the option whose value cannot be used."""
        check_fields(self)
        if self.verify and self.schedule != "uniform":
            raise UserError(f"schedule={self.schedule} does not go with verify=True: choose uniform")

    @property
    def guided(self) -> bool:
        """Whether each image is decoded with the null class too."""
        return guidance_weights(self.guidance, 1, self.guidance_scale, self.guidance_power) is not None

    def plan(self, model: ModelConfig, one_size: bool = False) -> Plan:
        """Returns the groups of tokens that each pass draws.

        Args:
          model: sizes of the network.
          one_size: make all groups of one size, ceil(T / steps), as verification and editing need.

        Raises:
          UserError: there are more steps than tokens, or the schedule has groups of different sizes.
        """
        num_tokens = model.num_tokens
        if self.steps > num_tokens:
            raise UserError(
                f"steps={self.steps} must be at most {num_tokens}, the tokens of an image; 0 draws one per pass"
            )
        order = self.scan_order if self.scan_order in DRAWN_ORDERS else None
        if not (one_size or self.verify):
            return Plan(group_sizes(self.schedule, num_tokens, self.steps), order)
        if self.schedule != "uniform":
            raise UserError(f"schedule={self.schedule} does not go with editing: choose uniform")
        size = -(-num_tokens // self.steps) if self.steps else 1
        full, rest = divmod(num_tokens, size)
        return Plan((size,) * full + ((rest,) if rest else ()), order, self.verify)

    def pass_sizes(self, model: ModelConfig) -> tuple[int, ...]:
        """Returns the number of tokens that each pass draws.

        Raises:
          UserError: it depends on the draws, or see `plan`.
        """
        if self.verify:
            raise UserError("verify=True: the number of passes depends on the draws; set it to False to count them")
        return self.plan(model).sizes

    def positions(self, model: ModelConfig) -> np.ndarray | None:
        """Returns the scan order as int32 [T], or None if each image draws one.

        Raises:
          UserError: the scan order is not defined for the model's grid.
        """
        return None if self.scan_order in DRAWN_ORDERS else scan_order(self.scan_order, model.grid_side)

    def traced(self, model: ModelConfig, seed: int) -> TracedOptions:
        """Returns the options that are arrays, for a model and the seed of all draws of a job.

        Raises:
          UserError: the scan order is not defined for the model's grid, or the seed is not from 0 to `MAX_SEED`.
        """
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"seed {seed} must be from 0 to {MAX_SEED}")
        positions = self.positions(model)
        weights = guidance_weights(self.guidance, model.num_tokens, self.guidance_scale, self.guidance_power)
        choice = Choice(
            temperature=jnp.float32(self.temperature) if self.temperature else None,
            top_k=jnp.int32(self.top_k) if 0 < self.top_k < model.codebook_size else None,
            top_p=jnp.float32(self.top_p) if self.top_p < 1 else None,
        )
        return TracedOptions(
            key=jax.random.key(seed),
            order=None if positions is None else jnp.asarray(positions),
            weights=None if weights is None else jnp.asarray(weights),
            choice=choice,
        )
