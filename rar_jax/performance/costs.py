"""Computes the FLOPs and bytes of RAR, and the FLOPs of a VQGAN, by formula. A multiply-add counts as two FLOPs.

Only matrix products are counted, including those of attention. Norms, activations and softmax are left out, as is usual
when utilisation is reported. Dimension letters are those of `models.rar`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rar_jax.models.sizes import PREFIX, ModelConfig, VQGANConfig


class Work(NamedTuple):
    """The FLOPs to compute, and the bytes to read for them."""

    flops: float
    bytes: float

    def seconds(self, flop_rate: float, bandwidth: float) -> float:
        """Returns the time by the roofline model: products and reads overlap, and the slower one decides.

        Args:
          flop_rate: rate of matrix products, FLOP/s.
          bandwidth: rate at which memory is read, bytes/s.
        """
        return max(self.flops / flop_rate, self.bytes / bandwidth)


def block_kernels(model: ModelConfig) -> int:
    """Returns the number of weights in the qkv, projection and MLP kernels of a block, without its modulation."""
    return 4 * model.width**2 + 2 * model.width * model.mlp_width


def modulation_flops(model: ModelConfig) -> int:
    """Returns the FLOPs of the modulations at one place of one sequence: six in each block and two in the head."""
    return 2 * (6 * model.depth + 2) * model.width**2


def forward_flops(model: ModelConfig) -> float:
    """Returns the FLOPs of the forward pass of one image in training.

    It has T+1 places, each of which attends to itself and to the places before it, and T predictions.
    """
    places = model.num_tokens + 1
    attention = 4 * model.width * places * (places + 1) / 2
    products = 2 * places * block_kernels(model)
    head = 2 * model.num_tokens * model.width * model.codebook_size
    # The head predicts nothing at the first place, so its modulation is not computed there.
    modulations = places * modulation_flops(model) - 4 * model.width**2
    return model.depth * (products + attention) + head + modulations


def train_flops(model: ModelConfig) -> float:
    """Returns the FLOPs of one image in a training step: the forward pass, and twice as many for the backward pass.

    Recomputation is not counted. Model FLOP utilisation (Chowdhery et al., 2022, "PaLM", appendix B) is this number
    times the images per second and device, divided by the device's rate of matrix products in FLOP/s.
    """
    return 3 * forward_flops(model)


def recomputed_flops(model: ModelConfig, remat: str) -> float:
    """Returns the FLOPs that the backward pass of one image computes a second time under the model's `remat`."""
    places = model.num_tokens + 1
    if remat != "block":
        # No policy keeps the products of queries and keys.
        return model.depth * 2 * model.width * places * (places + 1) / 2
    head = 2 * model.num_tokens * model.width * (model.codebook_size + 2 * model.width)
    return forward_flops(model) - head


def decode_passes(model: ModelConfig, sequences: int, itemsize: int, sizes: Sequence[int]) -> Iterator[Work]:
    """Yields the work of each pass of a decode loop with a KV cache, without the modulations.

    The first pass reads the two tokens of the prefix, and each later one a group of tokens. It predicts the next group.
    Its rows are the tokens that it reads and, if it predicts G positions, G - 1 branches of the last one. A pass reads
    every kernel once, and once the keys and values of the places up to its own.

    Args:
      model: sizes of the network.
      sequences: number of sequences decoded at once, which is twice the number of images with guidance.
      itemsize: bytes of a weight and of a number in the cache.
      sizes: sizes of the groups, which sum to T.
    """
    kernels = model.depth * block_kernels(model)
    head = model.width * model.codebook_size
    read, seen = PREFIX, PREFIX
    for predicted in sizes:
        places = [*range(seen - read + 1, seen + 1), *[seen] * (predicted - 1)]
        products = 2 * len(places) * kernels + 2 * predicted * head
        attention = 4 * model.depth * model.width * sum(places)
        cache = 2 * sequences * model.depth * model.width * seen
        yield Work(sequences * (products + attention), itemsize * (kernels + head + cache))
        read, seen = predicted, seen + predicted


def decode_modulation_flops(model: ModelConfig, classes: int) -> int:
    """Returns the FLOPs of the modulations of a decode. They are computed once for each place and class.

    Args:
      model: sizes of the network.
      classes: number of classes: the images of the batch, and one more for the null class with guidance.
    """
    # The head predicts nothing at the first place, so its modulation is not computed there.
    return classes * ((model.num_tokens + 1) * modulation_flops(model) - 4 * model.width**2)


def decode_work(
    model: ModelConfig, images: int, guided: bool, itemsize: int, sizes: Sequence[int]
) -> tuple[list[Work], int]:
    """Returns the work of each pass of a decode loop, and the FLOPs of its modulations.

    Args:
      model: sizes of the network.
      images: number of images decoded at once.
      guided: whether each image is also decoded with the null class.
      itemsize: bytes of a number in the compute dtype.
      sizes: sizes of the groups of tokens that a pass predicts.
    """
    passes = decode_passes(model, 2 * images if guided else images, itemsize, sizes)
    return list(passes), decode_modulation_flops(model, images + 1 if guided else images)


def vqgan_train_flops(model: VQGANConfig, image_size: int) -> float:
    """Returns the FLOPs of one image in a training step of a tokenizer: three times those of its convolutions.

    Finding the nearest codes counts too, once. A discriminator and a perceptual loss are not counted.
    """
    widths = [model.width * multiplier for multiplier in model.multipliers]
    places = [(image_size >> level) ** 2 for level in range(len(widths))]

    def blocks(count: int, before: int, width: int) -> int:
        """Returns the weights of so many blocks, the first of which changes the width."""
        shortcut = width**2 if before != width else 0
        return 9 * (before * width + (2 * count - 1) * width**2) + shortcut

    middle = blocks(model.num_blocks, widths[-1], widths[-1])
    coarse = 2 * middle + (1 + 9) * model.latent_width * widths[-1]
    products = coarse * places[-1] + 9 * 3 * (model.width + widths[0]) * places[0]
    for level, width in enumerate(widths):
        finer = widths[level - 1] if level > 0 else model.width
        coarser = widths[min(level + 1, len(widths) - 1)]
        products += (blocks(model.num_blocks, finer, width) + blocks(model.num_blocks, coarser, width)) * places[level]
        if level > 0:
            products += 9 * width**2 * places[level - 1]
    return 3 * 2 * products + 2 * model.codebook_size * model.latent_width * places[-1]
