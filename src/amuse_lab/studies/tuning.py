"""Tuning with equal budgets: which points are tried, and which of them is the best."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from amuse_lab.studies.study import Entry, Point, Records, Request, Study

_EDGE = ("lr", "lr_rest")
"""The settings whose range is extended where the best trial has its smallest or largest value."""

_FIRST_SEEDS = 3

_BEYOND = (0.2, 0.4)
"""How far beyond it the second round reaches, in shares of the range."""


@dataclass(frozen=True)
class Choice:
    """The best trial of an optimizer.

    Attributes:
        point: Values of the tuned settings.
        readout: Where it is evaluated.
        score: Mean of the study's measure over the horizons that were compared.
    """

    point: Point
    readout: str
    score: float


def first_round(study: Study, entry: Entry) -> list[Point]:
    """Return the trials fixed beforehand: scrambled Halton points, the same shares for every optimizer."""
    names = list(entry.tuned)
    shares = qmc.Halton(len(names), scramble=True, seed=np.random.default_rng(0)).random(study.trials)
    return [
        {name: entry.tuned[name].at(share) for name, share in zip(names, row, strict=True)} for row in shares
    ]


def second_round(entry: Entry, tried: Sequence[Point], best: Point) -> list[Point]:
    """Return the trials beyond an edge: empty unless a learning rate of the best is the extreme of all."""
    found: list[Point] = []
    for name in _EDGE:
        scale = entry.tuned.get(name)
        if scale is None:
            continue
        values = [point[name] for point in tried]
        share = scale.share(best[name])
        for extreme, direction in ((min(values), -1), (max(values), 1)):
            if best[name] == extreme:
                found += [dict(best) | {name: scale.at(share + direction * way)} for way in _BEYOND]
    return found


def trial(study: Study, entry: Entry, point: Point, steps: int) -> Request:
    """Return the request of a trial."""
    return Request(entry.name, point, study.tuning_seed, steps, reported=False, readouts=entry.readouts)


def best_of(
    study: Study, entry: Entry, points: Iterable[Point], horizons: Sequence[int], records: Records
) -> list[Choice]:
    """Return the trials from the best on, each with its best readout.

    Args:
        study: The study.
        entry: The optimizer.
        points: The trials, of which all have been run.
        horizons: Horizons over which the measure is averaged: one for an optimizer that is told where it
            ends. As the best loss at a horizon is the same for all trials, this orders them by mean regret.
        records: Records of the study.
    """
    choices = []
    for point in points:
        runs = [records[trial(study, entry, point, horizon).key(study)] for horizon in horizons]
        for readout in entry.readouts:
            values = [
                run.value(horizon, readout, study.measure)
                for run, horizon in zip(runs, horizons, strict=True)
            ]
            choices.append(Choice(point, readout, sum(values) / len(values)))
    best: dict[tuple[tuple[str, float], ...], Choice] = {}
    for choice in sorted(choices, key=lambda choice: choice.score):
        best.setdefault(tuple(choice.point.items()), choice)
    return list(best.values())


@dataclass
class Tuning:
    """Where the tuning of an optimizer stands.

    Attributes:
        wanted: Trials that can be run now and have not been.
        choices: The best trial by horizon, of those that are decided.
    """

    wanted: list[Request]
    choices: dict[int, Choice]

    @property
    def decided(self) -> bool:
        """Whether no trial is wanted any more."""
        return not self.wanted


def _missing(study: Study, requests: Iterable[Request], records: Records) -> list[Request]:
    return [request for request in requests if not is_done(study, request, records)]


def is_done(study: Study, request: Request, records: Records) -> bool:
    """Whether the records have all that a request wants."""
    record = records.get(request.key(study))
    return record is not None and record.satisfies(request, study)


def tuning(study: Study, entry: Entry, records: Records) -> Tuning:
    """Return where the tuning of an optimizer stands, and what it wants next.

    With a horizon: at each but the longest, all points of the first round, then those of the second; at the
    longest, the best points of the horizon before. Without: both rounds to the first stage, then the best
    few to the end.
    """
    return _with_horizon(study, entry, records) if entry.scheduled else _without(study, entry, records)


def _rounds(
    study: Study, entry: Entry, steps: int, horizons: Sequence[int], records: Records
) -> tuple[list[Request], list[Choice]]:
    """Both rounds of trials of so many steps: what is missing of them, else the trials from the best on."""
    points = first_round(study, entry)
    missing = _missing(study, (trial(study, entry, point, steps) for point in points), records)
    if missing:
        return missing, []
    best = best_of(study, entry, points, horizons, records)
    points += second_round(entry, points, best[0].point)
    missing = _missing(study, (trial(study, entry, point, steps) for point in points), records)
    return missing, [] if missing else best_of(study, entry, points, horizons, records)


def _without(study: Study, entry: Entry, records: Records) -> Tuning:
    early = [horizon for horizon in study.horizons if horizon <= study.first_stage]
    missing, best = _rounds(study, entry, study.first_stage, early, records)
    if missing:
        return Tuning(missing, {})
    points = [choice.point for choice in best[: study.finalists]]
    missing = _missing(study, (trial(study, entry, point, study.longest) for point in points), records)
    if missing:
        return Tuning(missing, {})
    (winner, *_) = best_of(study, entry, points, study.horizons, records)
    return Tuning([], dict.fromkeys(study.horizons, winner))


def _with_horizon(study: Study, entry: Entry, records: Records) -> Tuning:
    wanted: list[Request] = []
    choices: dict[int, Choice] = {}
    best: list[Choice] = []
    *shorter, longest = study.horizons
    for horizon in shorter:
        missing, best = _rounds(study, entry, horizon, (horizon,), records)
        wanted += missing
        if best:
            choices[horizon] = best[0]
    if best:
        points = [choice.point for choice in best[: study.reused]]
        missing = _missing(study, (trial(study, entry, point, longest) for point in points), records)
        wanted += missing
        if not missing:
            choices[longest] = best_of(study, entry, points, (longest,), records)[0]
    return Tuning(wanted, choices)


def reports(study: Study, entry: Entry, choices: dict[int, Choice]) -> Iterator[tuple[int, Request]]:
    """Yield the runs that are reported of a tuned optimizer, each with the number of its seed."""
    if not entry.scheduled and len(choices) == len(study.horizons):
        choice = choices[study.longest]
        for number, seed in enumerate(study.reporting_seeds):
            steps = study.longest if number < study.seeds_at_longest else study.horizons[-2]
            yield number, _report(entry, choice, seed, steps)
    if entry.scheduled:
        for horizon, choice in choices.items():
            for number, seed in enumerate(study.seeds(horizon)):
                yield number, _report(entry, choice, seed, horizon)


def _report(entry: Entry, choice: Choice, seed: int, steps: int) -> Request:
    readouts = tuple(dict.fromkeys(("x", choice.readout)))
    return Request(entry.name, choice.point, seed, steps, reported=True, readouts=readouts)


def wanted(study: Study, records: Records) -> list[Request]:
    """Return all runs that can be made now, the most urgent first.

    Optimizers are tuned in the study's order, and `_FIRST_SEEDS` of each are reported before the next one is
    tuned, so that a study under way can be read; then all others seed by seed.
    """
    first: list[Request] = []
    later: list[tuple[int, Request]] = []
    for entry in study.entries:
        state = tuning(study, entry, records)
        first += state.wanted
        if state.decided:
            reported = sorted(reports(study, entry, state.choices), key=lambda pair: pair[0])
            first += [request for number, request in reported if number < _FIRST_SEEDS]
            later += [pair for pair in reported if pair[0] >= _FIRST_SEEDS]
    later.sort(key=lambda pair: pair[0])
    return _missing(study, [*first, *(request for _, request in later)], records)
