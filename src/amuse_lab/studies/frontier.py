"""The frontier of a study, the envelope's loss over its horizons, and losses translated into steps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from amuse_lab.studies.reported import Values
from amuse_lab.studies.statistics import Crossing, Interval, crossing, interval, mean_curve
from amuse_lab.studies.verdicts import Findings, Verdict


@dataclass(frozen=True)
class Reach:
    """How many steps one optimizer needs for the loss that another has at a horizon.

    Attributes:
        entry: Name of the optimizer that is to reach it; "the envelope" if it is the frontier.
        horizon: Where the other has the loss.
        target: That loss: the mean over the seeds.
        seeds: Seeds over which both are averaged: there is one stopping step for all of them.
        crossing: The first step at which the mean is at or below the target.
    """

    entry: str
    horizon: int
    target: float
    seeds: tuple[int, ...]
    crossing: Crossing

    @property
    def share(self) -> float:
        """Steps needed over the horizon: below 1 where it is faster."""
        return self.crossing.steps / self.horizon


ENVELOPE = "the envelope"


def frontier(findings: Findings) -> Values:
    """Return the envelope's measure by horizon and seed."""
    return {horizon: findings.at(name, horizon) for horizon, name in findings.envelope.items()}


def steps_to_envelope(findings: Findings, entry: str, horizon: int) -> Reach | None:
    """Return how many steps an optimizer without a horizon needs for the envelope's loss at a horizon.

    Returns:
        None where there is nothing to compare yet, and where a run of the envelope failed.
    """
    return _reach(entry, findings.values[entry], frontier(findings).get(horizon, {}), horizon)


def envelope_steps_to(findings: Findings, entry: str, horizon: int) -> Reach | None:
    """Return how many steps, tuned for just so many, the envelope needs for an optimizer's loss at a horizon.

    Returns:
        None where there is nothing to compare yet, and where a run of the optimizer failed.
    """
    return _reach(ENVELOPE, frontier(findings), findings.at(entry, horizon), horizon)


def _reach(name: str, values: Values, targets: dict[int, float], horizon: int) -> Reach | None:
    """Answer for the largest set of seeds that reaches the target, else for the one that goes furthest."""
    found = None
    for seeds in _common(values, targets, horizon):
        target = math.fsum(targets[seed] for seed in seeds) / len(seeds)
        if not math.isfinite(target):
            return None
        found = Reach(name, horizon, target, seeds, crossing(mean_curve(values, seeds), target))
        if found.crossing.where != "beyond":
            return found
    return found


def _common(values: Values, targets: dict[int, float], horizon: int) -> Iterator[tuple[int, ...]]:
    """Seeds with the target and a value at the horizon; then those of them that go on, fewer and fewer."""
    before: tuple[int, ...] = ()
    for step in sorted(values):
        if step >= horizon:
            seeds = tuple(seed for seed in targets if seed in values[step])
            if seeds and seeds != before:
                before = seeds
                yield seeds


FIRST_ORDER = 0.3
"""The largest share of the steps for which the slope of the frontier stands in for its curve."""


STEPS_TO_REACH = (
    "First, how many steps the optimizer needs for the loss that the envelope has at the horizon; second, "
    "how many steps the envelope needs, tuned for just so many, for the loss that the optimizer has there; "
    "third, the difference in loss as a share of the steps by the slope of the envelope between the "
    "neighbouring horizons, positive where more steps are needed. One stopping step for all seeds: the first "
    "at which their mean is there. Between what was measured, losses are interpolated by a monotone cubic "
    "over the logarithm of the step; nothing was run between the horizons of the envelope. The third is to "
    "first order and takes the slope for exact, and as the first and the last horizon have one neighbour, "
    "the share is too large at the first and too small at the last; it is left out beyond "
    f"{100 * FIRST_ORDER:.0f} %, and where the interval of the slope is not below 0."
)
"""What the numbers of steps mean, as pages and study.json give it."""


def slope(findings: Findings, horizon: int) -> Interval:
    """Return the slope of the frontier at a horizon: of the loss over the logarithm of the steps.

    It is the difference between the neighbouring horizons, paired over the seeds that both have; not a number
    where a neighbour is missing. An end has one neighbour: with losses that fall ever more slowly the slope
    is too flat at the first horizon and too steep at the last.
    """
    values, horizons = frontier(findings), findings.study.horizons
    place = horizons.index(horizon)
    first, last = horizons[max(place - 1, 0)], horizons[min(place + 1, len(horizons) - 1)]
    begins, ends = values.get(first, {}), values.get(last, {})
    return interval([(ends[seed] - begins[seed]) / math.log(last / first) for seed in begins if seed in ends])


def extra_steps(findings: Findings, verdict: Verdict) -> Interval | None:
    r"""Return the difference to the envelope as a share of the steps.

    .. code-block:: text

        extra steps / steps = - difference / (d loss / d ln steps)

    to first order; positive where the optimizer needs more steps. The slope counts as exact.

    Returns:
        None where it would mean nothing: where the interval of the slope is not below 0, or the share is
        beyond `FIRST_ORDER`.
    """
    falls, found = slope(findings, verdict.horizon), verdict.difference
    if not falls.high < 0 or not abs(found.mean / falls.mean) <= FIRST_ORDER:
        return None
    return Interval(found.n, *(-value / falls.mean for value in (found.mean, found.sd, found.half)))
