"""The frontier of a study, the envelope's loss over its horizons, and losses translated into steps."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amuse_lab.studies.reported import Values
from amuse_lab.studies.statistics import Crossing, Interval, crossing, mean_curve
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


def slope(findings: Findings, horizon: int) -> float | None:
    """Return the slope of the frontier at a horizon: of the loss over the logarithm of the steps.

    It is the difference between the neighbouring horizons, or to the only one at an end, over the seeds that
    both have.

    Returns:
        None where a neighbour is missing.
    """
    values, horizons = frontier(findings), findings.study.horizons
    place = horizons.index(horizon)
    first, last = horizons[max(place - 1, 0)], horizons[min(place + 1, len(horizons) - 1)]
    begins, ends = values.get(first, {}), values.get(last, {})
    seeds: Sequence[int] = [seed for seed in begins if seed in ends]
    if not seeds:
        return None
    fall = math.fsum(ends[seed] - begins[seed] for seed in seeds) / len(seeds)
    return fall / math.log(last / first) if math.isfinite(fall) else None


def extra_steps(findings: Findings, verdict: Verdict) -> Interval | None:
    r"""Return the difference to the envelope as a share of the steps.

    .. code-block:: text

        extra steps / steps = - difference / (d loss / d ln steps)

    to first order, so for small differences; positive where the optimizer needs more steps.

    Returns:
        None where the frontier has no slope or does not fall.
    """
    falls = slope(findings, verdict.horizon)
    if falls is None or falls >= 0:
        return None
    found = verdict.difference
    return Interval(found.n, -found.mean / falls, -found.sd / falls, -found.half / falls)
