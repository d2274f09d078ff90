"""The order of images and the choice of crops. Any part of any epoch can be computed without the rest."""

import numpy as np

_ROUNDS = 8


def mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Hashes 64-bit values with the finaliser of SplitMix64: every input bit affects every output bit."""
    values = values + key
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shuffled(indices: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Returns where a shuffle of n items sends each index. The shuffle is a bijection of 0..n-1 given by (seed, epoch).

    It is a balanced Feistel network over the smallest even number of bits that can hold every index. A result outside
    0..n-1 is sent through the network again until it falls inside (cycle walking), which takes fewer than four passes
    on average.

    Args:
      indices: int64 [N], each in 0..n-1.
      n: the number of items, at least 1.
      seed, epoch: at least 0.

    Returns:
      int64 [N].
    """
    half_bits = np.uint64(max((n - 1).bit_length() + 1, 2) // 2)
    low_half = np.uint64((1 << int(half_bits)) - 1)
    keys = np.random.SeedSequence((seed, epoch)).generate_state(_ROUNDS, np.uint64)

    def permute(values):
        left, right = values >> half_bits, values & low_half
        for key in keys:
            left, right = right, left ^ (mix(right, key) & low_half)
        return (left << half_bits) | right

    values = permute(np.asarray(indices, np.uint64))
    while (outside := values >= np.uint64(n)).any():
        values[outside] = permute(values[outside])
    return values.astype(np.int64)


def chosen_crops(images: np.ndarray, crops: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the crop of each image that an epoch uses.

    The choice is uniform. Each cycle of `crops` epochs uses every crop of an image once.

    Args:
      images: int64 [N], the images' numbers.
      crops: K, the number of crops of each image.
      seed, epoch: at least 0.

    Returns:
      int64 [N], in 0..K-1.
    """
    cycle, turn = divmod(epoch, crops)
    # The third word makes the key differ from the keys of every shuffle.
    (key,) = np.random.SeedSequence((seed, cycle, crops)).generate_state(1, np.uint64)
    return ((mix(np.asarray(images, np.uint64), key) + np.uint64(turn)) % np.uint64(crops)).astype(np.int64)
