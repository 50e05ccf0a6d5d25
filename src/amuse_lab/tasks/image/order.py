"""Which images a step sees and the random numbers of each: pure functions of seed, epoch and image.

Imports nothing heavy: every decoding process loads this module.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amuse_lab.tasks.permutation import permute

_HOLD_OUT = "validation"  # keys the permutation: the same images are held out whatever a run's seed


@dataclass(frozen=True, eq=False)
class Visits:
    """Images to be seen, each in an epoch.

    Attributes:
        stream: Names the purpose and the seed; another stream has other random numbers.
        epochs: Number of the epoch of each visit, shape (images,).
        images: Their numbers in the file, shape (images,).
    """

    stream: str
    epochs: NDArray[np.int64]
    images: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Order:
    """Every image once in an epoch, in an order of its own for each epoch.

    Visit number v of the whole training, counted from 0, is the image that the permutation of epoch v // n
    puts in place v % n. A step takes the next `batch` of them, also across the end of an epoch.

    Attributes:
        images: Numbers of the n images, shape (n,).
        batch: Images per step, over all processes.
        stream: Name of the purpose and the seed, see `Visits`.
    """

    images: NDArray[np.int64]
    batch: int
    stream: str

    def visits(self, step: int, rows: slice = slice(None)) -> Visits:
        """Return what a step sees, or some of its rows; equally fast for every step.

        Args:
            step: Number of the training step, from 0.
            rows: Which of the `batch` images.
        """
        count = len(self.images)
        epochs, places = np.divmod(step * self.batch + np.arange(self.batch)[rows], count)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            places[chosen] = permute(places[chosen], count, f"{self.stream} {epoch}")
        return Visits(self.stream, epochs, self.images[places])


def uniforms(visits: Visits, count: int) -> NDArray[np.float64]:
    """Return random numbers for each visit, which depend on nothing but its stream, epoch and image.

    Args:
        visits: Visits that the numbers are for.
        count: How many numbers each visit gets.

    Returns:
        Uniform in [0, 1), multiples of 2^-53, shape (visits, count).
    """
    drawn = b"".join(
        hashlib.shake_128(f"{visits.stream} {epoch} {image}".encode()).digest(8 * count)
        for epoch, image in zip(visits.epochs.tolist(), visits.images.tolist(), strict=True)
    )
    bits = np.frombuffer(drawn, "<u8").reshape(-1, count) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def hold_out(labels: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the images of a training set: the same way always, with the same share of every class.

    The images in an order by class, random within each, are taken at even distances: a class of m of n images
    has m count / n of those held out, rounded up or down.

    Args:
        labels: The class of every image, shape (n,).
        count: How many to hold out, fewer than n.

    Returns:
        Numbers of the images to train on, and of those held out, both ascending.
    """
    n = len(labels)
    shuffled = permute(np.arange(n), n, _HOLD_OUT)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    taken = np.zeros(n, bool)
    taken[by_class[(2 * np.arange(count) + 1) * n // (2 * count)]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)
