"""How images are sampled."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from rar_jax.models.rar import RAR
from rar_jax.orders import SCAN_ORDERS, scan_order
from rar_jax.sampling.choose import Choice
from rar_jax.sampling.guidance import GUIDANCE_SCHEDULES, guidance_weights

RANDOM_ORDER = "random"
SAMPLING_ORDERS = (*SCAN_ORDERS, RANDOM_ORDER)


@dataclasses.dataclass(frozen=True)
class Options:
    """How images are sampled; checked when made.

    Attributes:
      scan_order: name of the order in which tokens are decoded, or random, which gives each image one of its own.
      guidance: name of the schedule of the guidance weight (`sampling.guidance`); none runs without, at half the cost.
      guidance_scale: at least 0; 1 is no guidance. guidance_power: of pow_cosine.
      temperature: at least 0; 0 is greedy.
      top_k: only the so many likeliest tokens can be drawn; 0 for all.
      top_p: only the likeliest tokens that make up this probability can be drawn; 1 for all.
    """

    scan_order: str = "row_major"
    guidance: str = "pow_cosine"
    guidance_scale: float = 1.0
    guidance_power: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        """Raises a `ValueError` that names the option that cannot be used."""
        for name, holds, way_out in (
            ("scan_order", self.scan_order in SAMPLING_ORDERS, f"one of {', '.join(SAMPLING_ORDERS)}"),
            ("guidance", self.guidance in GUIDANCE_SCHEDULES, f"one of {', '.join(GUIDANCE_SCHEDULES)}"),
            ("guidance_scale", 0 <= self.guidance_scale < np.inf, "at least 0; 1 is no guidance"),
            ("guidance_power", 0 < self.guidance_power < np.inf, "above 0"),
            ("temperature", 0 <= self.temperature < np.inf, "at least 0; 0 takes the most likely token"),
            ("top_k", self.top_k >= 0, "at least 0; 0 draws from all tokens"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and up to 1; 1 draws from all tokens"),
        ):
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)} must be {way_out}")

    @property
    def guided(self) -> bool:
        """Whether each image is run with the null class too."""
        return guidance_weights(self.guidance, 1, self.guidance_scale, self.guidance_power) is not None

    def positions(self, model: RAR) -> np.ndarray | None:
        """The scan order as int32 [T], or None where each image has a random one.

        Raises:
          ValueError: the model's grid does not admit it.
        """
        return None if self.scan_order == RANDOM_ORDER else scan_order(self.scan_order, model.grid_side)

    def arguments(self, model: RAR) -> dict[str, Any]:
        """What `decode` is to be given."""
        positions = self.positions(model)
        weights = guidance_weights(self.guidance, model.num_tokens, self.guidance_scale, self.guidance_power)
        choice = Choice(
            temperature=jnp.float32(self.temperature) if self.temperature else None,
            top_k=jnp.int32(self.top_k) if 0 < self.top_k < model.codebook_size else None,
            top_p=jnp.float32(self.top_p) if self.top_p < 1 else None,
        )
        return {
            "order": None if positions is None else jnp.asarray(positions),
            "weights": None if weights is None else jnp.asarray(weights),
            "choice": choice,
        }
