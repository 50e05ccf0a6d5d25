import time

import numpy as np
import pytest

from amuse_lab.tasks.permutation import permute


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 1000, 65_536, 65_537])
def test_every_number_comes_once(n: int) -> None:
    for key in ("0 0", "0 1", "1 0"):
        assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


def test_an_index_alone_has_the_same_image_as_among_others() -> None:
    together = permute(np.arange(1000), 1000, "key")
    assert [permute(np.array([i]), 1000, "key").item() for i in (0, 17, 999)] == together[
        [0, 17, 999]
    ].tolist()


def test_keys_give_unrelated_orders() -> None:
    n = 4096
    first, second = (permute(np.arange(n), n, key) for key in ("0 0", "0 1"))
    # Two random orders agree in one place on average, and follow each other with correlation 1 / sqrt(n).
    assert (first == second).sum() < 8
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / n**0.5
    assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < 5 / n**0.5


@pytest.mark.parametrize("n", [3, 12, 37])
def test_each_place_gets_each_number_equally_often(n: int) -> None:
    keys = 1000
    counts = np.zeros((n, n))
    for key in range(keys):
        counts[np.arange(n), permute(np.arange(n), n, str(key))] += 1
    # Pearson's statistic has (n - 1)^2 degrees of freedom, and twice that as its variance.
    statistic = ((counts - keys / n) ** 2 / (keys / n)).sum() * (n - 1) / n
    freedom = (n - 1) ** 2
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighbours_part() -> None:
    n = 100_000
    steps = np.abs(np.diff(permute(np.arange(n), n, "key")))
    # The distance of two random numbers below n is n / 3 on average, with standard deviation n / sqrt(18).
    assert abs(steps.mean() / n - 1 / 3) < 5 / 18**0.5 / n**0.5


def test_hundred_million_numbers_cost_no_more_than_a_few() -> None:
    n = 100_000_007
    indices = np.arange(n - 2**18, n)
    images = permute(indices, n, "key")
    assert len(np.unique(images)) == 2**18
    assert images.min() >= 0
    assert images.max() < n
    # So many of n random numbers fall into each tenth of the range evenly.
    tenths = np.bincount(images * 10 // n, minlength=10) / 2**18
    assert np.abs(tenths - 0.1).max() < 5 * (0.1 * 0.9 / 2**18) ** 0.5
    start = time.process_time()
    permute(np.array([n - 1]), n, "key")
    assert time.process_time() - start < 0.1
