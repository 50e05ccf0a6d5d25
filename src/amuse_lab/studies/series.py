"""The numbers that figures and pages show, taken from the records of a study, as far as there are any."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from amuse_lab.studies.study import Entry, Point, Record, Records, Study
from amuse_lab.studies.tuning import Choice, reports, tuning


@dataclass(frozen=True)
class Summary:
    """The study's measure over the seeds that were reported.

    Attributes:
        mean: Mean over the seeds.
        low: Smallest value.
        high: Largest value.
        seeds: How many there are.
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
        horizon: The horizon.
        value: The study's measure.
    """

    point: Point
    horizon: int
    value: float


def choices(study: Study, entry: Entry, records: Records) -> dict[int, Choice]:
    """Return the best trial by horizon, of those that are decided."""
    return tuning(study, entry, records).choices


def reported(study: Study, entry: Entry, records: Records) -> list[Record]:
    """Return the records of an optimizer that are reported, seed by seed."""
    wanted = reports(study, entry, choices(study, entry, records))
    keys = [request.key(study) for _, request in sorted(wanted, key=lambda pair: pair[0])]
    return [records[key] for key in keys if key in records]


def trials(study: Study, entry: Entry, records: Records) -> list[Record]:
    """Return the records of an optimizer's tuning, in the order of the records."""
    own = (record for record in records.values() if record.entry == entry.name)
    return [record for record in own if record.seed == study.tuning_seed]


def curve(study: Study, entry: Entry, records: Records) -> dict[int, Summary]:
    """Return the measure of an optimizer at its chosen readout by step, over its reported seeds.

    Of an optimizer without a horizon these are all steps of the study's curve, of one with a horizon the ends
    of its runs.
    """
    chosen = choices(study, entry, records)
    runs = reported(study, entry, records)
    found: dict[int, Summary] = {}
    for step in study.horizons if entry.scheduled else study.curve:
        choice = chosen.get(step if entry.scheduled else study.longest)
        if choice is not None:
            values = [run.value(step, choice.readout, study.measure) for run in runs]
            summary = _summary(values)
            if summary is not None:
                found[step] = summary
    return found


def _summary(values: Iterable[float]) -> Summary | None:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    return Summary(math.fsum(finite) / len(finite), min(finite), max(finite), len(finite))


def training(runs: Sequence[Record]) -> list[tuple[int, float]]:
    """Return the training loss of runs of the same length: means over the runs, by step."""
    if not runs:
        return []
    steps = [step for step, _ in runs[0].training]
    alike = [run for run in runs if [step for step, _ in run.training] == steps]
    losses = zip(*([loss for _, loss in run.training] for run in alike), strict=True)
    return [(step, sum(loss) / len(alike)) for step, loss in zip(steps, losses, strict=True)]


def tried(study: Study, entry: Entry, records: Records) -> list[Trial]:
    """Return what the trials of an optimizer measured at each horizon; failed ones are left out."""
    found = []
    for record in trials(study, entry, records):
        for horizon in study.horizons:
            values = [record.value(horizon, readout, study.measure) for readout in entry.readouts]
            if math.isfinite(min(values)):
                found.append(Trial(record.point, horizon, min(values)))
    return found


def readout_losses(study: Study, entry: Entry, records: Records) -> dict[int, dict[str, float]]:
    """Return, by horizon, what each readout of the chosen trial is behind the best of them there."""
    found: dict[int, dict[str, float]] = {}
    for horizon, choice in choices(study, entry, records).items():
        runs = [
            record
            for record in trials(study, entry, records)
            if dict(record.point) == dict(choice.point)
            and record.steps >= horizon
            and (not entry.scheduled or record.steps == horizon)
        ]
        values = {
            readout: run.value(horizon, readout, study.measure) for run in runs for readout in entry.readouts
        }
        best = min(values.values(), default=math.inf)
        if math.isfinite(best):
            found[horizon] = {readout: value - best for readout, value in values.items()}
    return found


def thinned(points: Sequence[tuple[int, float]], most: int = 300) -> list[tuple[int, float]]:
    """Return at most so many points of a curve, the first and the last among them, evenly by position."""
    if len(points) <= most:
        return list(points)
    return [points[round(n * (len(points) - 1) / (most - 1))] for n in range(most)]
