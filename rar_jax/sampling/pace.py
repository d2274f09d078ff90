"""How far images advance with each pass of the network when their tokens are verified."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np


class Pace(NamedTuple):
    """How images advanced.

    Attributes:
      passes: int32 [B], passes of the network, the first draft included.
      examined: int32 [B, G], how often the j-th token of a draft was examined. The first one needs no examination.
      accepted: int32 [B, G], how often it was accepted.
    """

    passes: jax.Array
    examined: jax.Array
    accepted: jax.Array


def tokens_per_pass(paces: Sequence[Pace], num_tokens: int) -> float:
    """Returns the mean number of tokens per pass, over images that each drew `num_tokens` tokens."""
    passes = np.concatenate([pace.passes for pace in paces])
    return num_tokens * len(passes) / int(passes.sum())


def accepted_shares(paces: Sequence[Pace]) -> dict[int, float]:
    """Returns the share of examined tokens that were accepted, for each place in a draft that was examined.

    Places count from 1. The first token of a draft needs no examination.
    """
    examined, accepted = (
        np.sum([np.sum(getattr(pace, name), axis=0) for pace in paces], axis=0) for name in ("examined", "accepted")
    )
    return {int(place) + 1: float(accepted[place] / examined[place]) for place in np.flatnonzero(examined)}
