"""The numbers that figures and pages show, taken from the records of a study, as far as there are any."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from amuse_lab.studies import frontier
from amuse_lab.studies.statistics import interval
from amuse_lab.studies.study import Entry, Point, Record, Records, Study
from amuse_lab.studies.tuning import tuning
from amuse_lab.studies.verdicts import Findings

Points = list[tuple[int, float]]
"""A curve: steps, ascending, each with a value."""


@dataclass(frozen=True)
class Summary:
    """The study's measure over the seeds that were reported.

    Attributes:
        mean: Mean over the seeds.
        low: Smallest value that a seed has.
        high: Largest value that a seed has.
        seeds: How many seeds the mean is taken over.
    """

    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Trial:
    """What a trial measured at one horizon, at its best readout there.

    Attributes:
        point: Values of the tuned settings.
        horizon: The horizon, in training steps.
        value: The study's measure after so many steps; lower is better.
    """

    point: Point
    horizon: int
    value: float


def curve(findings: Findings, entry: Entry) -> dict[int, Summary]:
    """Return the measure of an optimizer at its chosen readout by step, over its reported seeds.

    Of an optimizer without a horizon these are the steps at which it was evaluated, of one with a horizon the
    ends of its runs. A step at which one of them had failed is left out.
    """
    found = {}
    for step, by_seed in findings.values[entry.name].items():
        values = list(by_seed.values())
        mean = interval(values).mean
        if math.isfinite(mean):
            found[step] = Summary(mean, min(values), max(values), len(values))
    return found


def envelope(findings: Findings) -> Points:
    """Return the mean of the best scheduled optimizer at each horizon."""
    found = []
    for horizon, name in findings.envelope.items():
        summary = curve(findings, findings.study.entry(name)).get(horizon)
        if summary is not None:
            found.append((horizon, summary.mean))
    return found


def steps_to_envelope(findings: Findings, entry: Entry) -> tuple[Points, Points]:
    """Return the steps that an optimizer without a horizon needs for the envelope's loss, over the horizon.

    Returns:
        Shares by horizon; first those that were measured, then those that are only bounds because the curve
        never reaches the loss, or begins below it.
    """
    reached: Points = []
    bounds: Points = []
    for horizon in findings.study.horizons if not entry.scheduled else ():
        found = frontier.steps_to_envelope(findings, entry.name, horizon)
        if found is not None:
            (reached if found.crossing.where == "at" else bounds).append((horizon, found.share))
    return reached, bounds


def training(findings: Findings, entry: Entry, steps: int) -> Points:
    """Return the training loss of the reported runs of so many steps: means where all of them have it."""
    runs = [
        dict(run.record.training) for run in findings.reported[entry.name].runs if run.record.steps == steps
    ]
    common = sorted(set.intersection(*map(set, runs))) if runs else []
    return [(step, math.fsum(run[step] for run in runs) / len(runs)) for step in common]


def trials(study: Study, entry: Entry, records: Records) -> list[Record]:
    """Return the runs of an optimizer's tuning with the first tuning seed, by their steps and keys."""
    asked = {request.key(study) for request in tuning(study, entry, records).trials}
    return sorted(
        (record for key, record in records.items() if key in asked and record.seed == study.tuning_seeds[0]),
        key=lambda record: (record.steps, record.key),
    )


def tried(study: Study, entry: Entry, records: Records) -> list[Trial]:
    """Return what the trials of an optimizer measured at each horizon; failed ones are left out."""
    found = []
    for record in trials(study, entry, records):
        for horizon in study.horizons:
            value = best_readout(study, entry, record, horizon)
            if math.isfinite(value):
                found.append(Trial(record.point, horizon, value))
    return found


def best_readout(study: Study, entry: Entry, record: Record, horizon: int) -> float:
    """Return a run's measure at the readout that is the best there; infinite if there is none."""
    return min(record.value(horizon, readout, study.measure) for readout in entry.readouts)


def readout_losses(findings: Findings, entry: Entry, records: Records) -> dict[int, dict[str, float]]:
    """Return, by horizon, what each readout of the chosen trial is behind the best of them there."""
    study = findings.study
    found: dict[int, dict[str, float]] = {}
    for horizon, choice in findings.reported[entry.name].choices.items():
        for record in trials(study, entry, records):
            best = best_readout(study, entry, record, horizon)
            if dict(record.point) == dict(choice.point) and math.isfinite(best):
                found[horizon] = {
                    readout: record.value(horizon, readout, study.measure) - best
                    for readout in entry.readouts
                }
    return found


def thinned(points: Sequence[tuple[int, float]], most: int = 300) -> Points:
    """Return at most so many points of a curve, the first and the last among them, evenly by position."""
    if len(points) <= most:
        return list(points)
    return [points[round(n * (len(points) - 1) / (most - 1))] for n in range(most)]
