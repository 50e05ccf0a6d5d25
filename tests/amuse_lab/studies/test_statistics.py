"""The bare statistics of studies against scipy, simulations and curves that are known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from amuse_lab.studies.statistics import crossing, interval, mean_curve, simultaneous_level
from amuse_lab.studies.verdicts import word


def test_the_paired_interval_is_scipys() -> None:
    generator = np.random.default_rng(1)
    own, other = generator.normal(size=(2, 7))
    for level in (0.95, simultaneous_level(5)):
        found = interval(list(own - other), level)
        expected = stats.ttest_rel(own, other).confidence_interval(level)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert simultaneous_level(5) == pytest.approx(0.99)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.inf], [-math.inf, math.inf]])
def test_nothing_bounds_the_mean_of_one_number_or_of_a_failure(values: list[float]) -> None:
    found = interval(values)
    assert (found.low, found.high, found.n) == (-math.inf, math.inf, len(values))
    assert word(found.low, found.high, 0.005) == "undecided"


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    # 2,000 studies of 5 horizons and 6 seeds; what the horizons of a seed share makes them dependent.
    generator = np.random.default_rng(2)
    truth = np.array([-0.01, 0.0, 0.003, 0.01, 0.02])
    shared = generator.normal(0, 0.006, (2000, 1, 6))
    differences = truth[:, None] + shared + generator.normal(0, 0.004, (2000, 5, 6))
    single, simultaneous, worst = [], [], []
    for drawn in differences:
        each = [interval(list(row)) for row in drawn]
        single += [found.low <= true <= found.high for found, true in zip(each, truth, strict=True)]
        wide = [interval(list(row), simultaneous_level(5)) for row in drawn]
        simultaneous.append(
            all(found.low <= true <= found.high for found, true in zip(wide, truth, strict=True))
        )
        ends = max(found.low for found in wide), max(found.high for found in wide)
        worst.append(ends[0] <= truth.max() <= ends[1])
    assert np.mean(single) == pytest.approx(0.95, abs=0.02)
    assert np.mean(simultaneous) >= 0.95
    assert np.mean(worst) >= 0.95


def test_where_a_power_law_crosses_a_loss_is_known() -> None:
    steps = [round(10 * 1.1**n) for n in range(60)]
    curve = [(step, 1.5 + 3 / step**0.4) for step in steps]
    found = crossing(curve, 1.5 + 3 / 200**0.4)
    assert found.where == "at"
    assert found.steps == pytest.approx(200, rel=2e-3)
    straight = [(step, 4 - 0.5 * math.log(step)) for step in (10, 40, 1000)]  # no error of interpolation
    assert crossing(straight, 4 - 0.5 * math.log(123)).steps == pytest.approx(123)
    assert (crossing(curve, 9.0).steps, crossing(curve, 9.0).where) == (10, "before")
    assert (crossing(curve, 1.0).steps, crossing(curve, 1.0).where) == (steps[-1], "beyond")
    sparse = [(step, 1.5 + 3 / step**0.4) for step in (100, 200, 400, 800)]  # doublings, as horizons are
    for step in (130, 290, 610):
        loss = 1.5 + 3 / step**0.4
        (low, above), (high, below) = next(
            (a, b) for a, b in itertools.pairwise(sparse) if a[0] < step < b[0]
        )
        chord = low * (high / low) ** ((above - loss) / (above - below))
        assert abs(crossing(sparse, loss).steps - step) < abs(chord - step) / 2
    assert crossing([(10, math.inf), (20, 1.0), (40, 0.5)], 1.0).steps == 20  # it failed before
    wavy = [(10, 3.0), (20, 2.0), (40, 2.5), (80, 1.0)]
    assert crossing(wavy, 2.0).steps == pytest.approx(20)  # the first time, as a run that is stopped there
    assert mean_curve({10: {1: 1.0, 2: 3.0}, 20: {1: 0.0}}, (1, 2)) == [(10, 2.0)]
    assert mean_curve({10: {1: 1.0}}, ()) == []
