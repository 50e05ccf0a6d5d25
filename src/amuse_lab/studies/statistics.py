"""The bare statistics of studies: intervals of few numbers, and where a curve reaches a value."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.stats import t

CONFIDENCE = 0.95
"""Confidence of every interval."""


@dataclass(frozen=True)
class Interval:
    """A mean of few numbers and Student's interval around it.

    Attributes:
        n: How many numbers there are.
        mean: Their mean; not a number if there is none or one is not finite.
        sd: Their standard deviation, with n - 1; not a number below two numbers.
        half: Half the width of the interval; infinite where nothing bounds the mean.
    """

    n: int
    mean: float
    sd: float
    half: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half if math.isfinite(self.half) else -math.inf

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half if math.isfinite(self.half) else math.inf


@functools.cache
def _quantile(level: float, n: int) -> float:
    return float(t.ppf((1 + level) / 2, n - 1))


def interval(values: Sequence[float], level: float = CONFIDENCE) -> Interval:
    r"""Return the mean of numbers with the t-interval around it.

    .. code-block:: text

        mean ± t_{(1 + level) / 2, n - 1} sd / sqrt(n)

    Args:
        values: The numbers; an infinite one, of a run that failed, leaves the mean unbounded.
        level: Confidence of the interval, in (0, 1).
    """
    n = len(values)
    if n == 0 or not all(map(math.isfinite, values)):
        return Interval(n, math.nan, math.nan, math.inf)
    mean = float(np.mean(values))
    if n == 1:
        return Interval(n, mean, math.nan, math.inf)
    sd = float(np.std(values, ddof=1))
    return Interval(n, mean, sd, _quantile(level, n) * sd / math.sqrt(n))


def simultaneous_level(count: int) -> float:
    """Return the level of each of `count` intervals that hold all at once with `CONFIDENCE` (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / count


def log_weights(steps: Sequence[int]) -> list[float]:
    """Return the shares of values at steps in their mean over the logarithm of the step (trapezoids).

    Args:
        steps: Steps that the values belong to: ascending, at least two.
    """
    logs = np.log(steps)
    gaps = np.diff(logs)
    halves = np.concatenate(([0.0], gaps)) + np.concatenate((gaps, [0.0]))
    return [float(share) for share in halves / 2 / (logs[-1] - logs[0])]


def mean_curve(values: Mapping[int, Mapping[int, float]], seeds: Sequence[int]) -> list[tuple[int, float]]:
    """Return the mean over seeds, at each step at which all of them have a value.

    Args:
        values: The curve's values by step, then by seed.
        seeds: Seeds that are averaged; none makes no curve.
    """
    if not seeds:
        return []
    return [
        (step, math.fsum(found[seed] for seed in seeds) / len(seeds))
        for step, found in sorted(values.items())
        if all(seed in found for seed in seeds)
    ]


@dataclass(frozen=True)
class Crossing:
    """The first step at which a curve is at or below a value.

    Attributes:
        steps: The step, by a monotone cubic through the points over the logarithm of the step (straight lines
            would lie above a curve that falls ever more slowly); the first or the last step of the curve
            where it is not between them.
        where: "at" that step, "before" it (the curve begins below the value), or "beyond" it (never reached).
    """

    steps: float
    where: str


def crossing(curve: Sequence[tuple[int, float]], value: float) -> Crossing:
    """Return the first step at which a curve is at or below a value.

    Args:
        curve: Steps, ascending, each with the curve's value there; at least one.
        value: What is to be reached.
    """
    first, begins = curve[0]
    if begins <= value:
        return Crossing(first, "at" if begins == value else "before")
    for (step, above), (following, below) in itertools.pairwise(curve):
        if below <= value:
            between = _crossed(curve, step, following, value) if math.isfinite(above) else following
            return Crossing(between, "at")
    return Crossing(curve[-1][0], "beyond")


def _crossed(curve: Sequence[tuple[int, float]], begin: int, end: int, value: float) -> float:
    """Where a curve is at a value between two of its points; points that are not finite are left out."""
    logs, values = np.array([(math.log(step), found) for step, found in curve if math.isfinite(found)]).T
    low, high = math.log(begin), math.log(end)
    roots = PchipInterpolator(logs, values - value).roots(extrapolate=False)
    return math.exp(min((root for root in roots if low <= root <= high), default=high))
