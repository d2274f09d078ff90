"""What a RAR must compute and read, by formula: FLOPs (a multiply-add is two) and bytes.

Counted are the matrix products, attention's among them; norms, activations and softmax are left out, as they are where
utilisations are quoted. Dimension letters as in `models.rar`.
"""

from collections.abc import Iterator
from typing import NamedTuple

from rar_jax.models.sizes import PREFIX, ModelConfig


class Work(NamedTuple):
    """FLOPs to be done and bytes to be read for it."""

    flops: float
    bytes: float

    def seconds(self, flop_rate: float, bandwidth: float) -> float:
        """The roofline: products and reads overlap, and the slower one counts. Rates in FLOP/s and bytes/s."""
        return max(self.flops / flop_rate, self.bytes / bandwidth)


def block_kernels(model: ModelConfig) -> int:
    """Weights that each token is multiplied by in a block, its modulation apart: qkv, projection, MLP."""
    return 4 * model.width**2 + 2 * model.width * model.mlp_width


def modulation_flops(model: ModelConfig) -> int:
    """Of one place of one sequence: the six modulations of every block and the head's two."""
    return 2 * (6 * model.depth + 2) * model.width**2


def forward_flops(model: ModelConfig) -> float:
    """Of one image in training: T+1 places, of which each sees itself and those before it, and T predictions."""
    places = model.num_tokens + 1
    attention = 4 * model.width * places * (places + 1) / 2
    products = 2 * places * block_kernels(model)
    head = 2 * model.num_tokens * model.width * model.codebook_size
    # The head's modulation is not needed at the first place.
    modulations = places * modulation_flops(model) - 4 * model.width**2
    return model.depth * (products + attention) + head + modulations


def train_flops(model: ModelConfig) -> float:
    """Of one image in a training step: the forward pass, and twice that backward. Recomputation does not count.

    Model FLOP utilisation (Chowdhery et al., 2022, "PaLM", appendix B) is this x images a second and device / the rate
    of products, FLOP/s, of a device.
    """
    return 3 * forward_flops(model)


def decode_steps(model: ModelConfig, sequences: int, itemsize: int) -> Iterator[Work]:
    """The steps of a decode loop with a KV cache: the prefill of the first two places, then one a token.

    A step reads every kernel, and the keys and values of the places up to its own, once.

    Args:
      model: the network.
      sequences: decoded at once, twice the images with guidance.
      itemsize: bytes of a weight and of a cached number.
    """
    for predicted in range(1, model.num_tokens + 1):
        seen = PREFIX + predicted - 1
        new = range(1, PREFIX + 1) if predicted == 1 else (seen,)
        products = 2 * len(new) * model.depth * block_kernels(model) + 2 * model.width * model.codebook_size
        attention = sum(4 * model.depth * model.width * places for places in new)
        kernels = model.depth * block_kernels(model) + model.width * model.codebook_size
        cache = 2 * sequences * model.depth * model.width * seen
        yield Work(sequences * (products + attention), itemsize * (kernels + cache))


def decode_modulation_flops(model: ModelConfig, classes: int) -> int:
    """Of a decode: the modulations of every place, once a class (of the batch, and the null class with guidance)."""
    # The head's are not needed at the first place.
    return classes * ((model.num_tokens + 1) * modulation_flops(model) - 4 * model.width**2)


def decode_floor(
    model: ModelConfig, batch: int, guided: bool, itemsize: int, flop_rate: float, bandwidth: float
) -> tuple[float, float]:
    """The least time a decode of a batch can take, s: its steps, each by the roofline, and its modulations.

    Args:
      model: the network.
      batch: images.
      guided: each runs with the null class too.
      itemsize: bytes of a number in the compute dtype.
      flop_rate: of products, FLOP/s. bandwidth: of memory, bytes/s.
    """
    sequences, classes = (2 * batch, batch + 1) if guided else (batch, batch)
    steps = sum(work.seconds(flop_rate, bandwidth) for work in decode_steps(model, sequences, itemsize))
    return steps, decode_modulation_flops(model, classes) / flop_rate


def recomputed_flops(model: ModelConfig, remat: str) -> float:
    """Of one image in a training step: what the backward pass computes again under the model's `remat`."""
    places = model.num_tokens + 1
    # Query by key, which no policy keeps; "dots" does not keep the mixed values either.
    scores = model.depth * 2 * model.width * places * (places + 1) / 2
    if remat != "block":
        return (2 if remat == "dots" else 1) * scores
    head = 2 * model.num_tokens * model.width * (model.codebook_size + 2 * model.width)
    return forward_flops(model) - head
