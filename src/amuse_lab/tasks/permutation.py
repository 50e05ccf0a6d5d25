"""A random order of n things without a list of n numbers: a keyed permutation, computed index by index."""

import hashlib

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8


def permute(indices: NDArray[np.int64], n: int, key: str) -> NDArray[np.int64]:
    """Return where a random permutation of 0 ... n - 1 takes each index.

    A Feistel network permutes the numbers of the fewest bits that hold n - 1: each round changes one half of
    the bits by a hash of the other, which can be undone, so every round is a permutation and so are all.
    Where the image is n or more it is permuted again until it is not ("cycle walking", less than once on
    average), which leaves a permutation of the numbers below n. Time and memory for an index do not depend
    on n.

    Args:
        indices: Each in [0, n), any shape.
        n: How many things there are, at least 1.
        key: Text that chooses one of the permutations.

    Returns:
        The images, of the same shape, int64.

    References:
        M. Luby, C. Rackoff, "How to construct pseudorandom permutations from pseudorandom functions", 1988;
        J. Black, P. Rogaway, "Ciphers with arbitrary finite domains", 2002.
    """
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest(), "<u8")
    bits = max(2, (n - 1).bit_length())
    images = _network(indices.astype(np.uint64), keys, bits)
    while (outside := images >= n).any():
        images[outside] = _network(images[outside], keys, bits)
    return images.astype(np.int64)


def _network(numbers: NDArray[np.uint64], keys: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """Permute the numbers of so many bits."""
    low = bits // 2
    right_mask, left_mask = np.uint64((1 << low) - 1), np.uint64((1 << (bits - low)) - 1)
    left, right = numbers >> np.uint64(low), numbers & right_mask
    for change_left, change_right in keys.reshape(-1, 2):
        left = left ^ (_mixed(right + change_left) & left_mask)
        right = right ^ (_mixed(left + change_right) & right_mask)
    return left << np.uint64(low) | right


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all 64, modulo 2^64: the finalizer of SplitMix64."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)
