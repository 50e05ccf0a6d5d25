"""Tuning with equal budgets: which points are tried, and which of them is the best."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import qmc

from amuse_lab.studies.study import Entry, Point, Records, Request, Study

_EDGE = ("lr", "lr_rest")
"""The settings whose range is extended where the best trial has its smallest or largest value."""

_FIRST_SEEDS = 3

_BEYOND = (0.2, 0.4)
"""How far beyond it the second round reaches, in shares of the range."""


def tuning_rule(study: Study) -> str:
    """Return in words how optimizers are tuned, and with which seeds they are reported."""
    first, *others = study.tuning_seeds
    confirmed = (
        f" The {study.confirmed} best are run with the tuning seeds {', '.join(map(str, others))} too, and "
        "the best mean over all of them is chosen."
        if others
        else ""
    )
    apart = "" if study.judged is None else ", evaluated on other data than the trials"
    return (
        f"Tuning: {study.trials} trials fixed beforehand for each optimizer, in ranges of its own, with seed "
        f"{first}: at each horizon for those that are told where to end (at the longest one the "
        f"{study.reused} best of the horizon before), once for all horizons otherwise. More trials where the "
        f"best of seed {first} has the smallest or the largest learning rate, {_BEYOND[0]:g} and "
        f"{_BEYOND[1]:g} of its range beyond it, but not for the longest horizon of the former, and at the "
        f"edge of no other setting.{confirmed} The best without a horizon has the lowest mean regret over "
        "the horizons: what it is behind the best trial there, in units of what the median trial is behind "
        f"it with seed {first}. The readout, that is the weights at which the model is evaluated, is chosen "
        f"with the settings. Reported: {len(study.reporting_seeds)} other seeds, {study.seeds_at_longest} of "
        f"them at {study.longest:,} steps{apart}."
    )


@dataclass(frozen=True)
class Choice:
    """A setting of an optimizer that has been tried.

    Attributes:
        point: Values of the tuned settings.
        readout: Point at which the model is evaluated, such as "x"; tuning chooses it with the settings.
        losses: The study's measure there by horizon, the mean over the tuning seeds that were run.
        score: How it compares with the others, see `ranked`; 0 is the best at every horizon.
    """

    point: Point
    readout: str
    losses: Mapping[int, float]
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


def trial(study: Study, entry: Entry, point: Point, steps: int, seed: int | None = None) -> Request:
    """Return the request of a trial; the seed is the first tuning seed if None."""
    chosen = study.tuning_seeds[0] if seed is None else seed
    return Request(entry.name, point, chosen, steps, reported=False, readouts=entry.readouts)


def ranked(
    study: Study,
    entry: Entry,
    points: Sequence[Point],
    horizons: Sequence[int],
    records: Records,
    *,
    seeds: Sequence[int] | None = None,
    spreads: Mapping[int, float] | None = None,
) -> list[Choice]:
    r"""Return the trials from the best on, each with its best readout.

    They are compared by their mean regret over the horizons. At short horizons losses lie much further apart
    than at long ones, so that a plain mean would tune for the short ones; the regret is therefore counted in
    units of the spread:

    .. code-block:: text

        score = mean over h of (loss_h - best_h) / spread_h,    spread_h = median_h - best_h

    Args:
        study: Study that the trials are of; it gives the measure and the tuning seeds.
        entry: The optimizer that was tried; each of its readouts is compared.
        points: The trials, of which all have been run to the last of the horizons.
        horizons: Horizons that are compared: one for an optimizer that is told where it ends.
        records: Records of the study by key, with those of all these trials.
        seeds: Tuning seeds whose mean is taken; None means the first one.
        spreads: The spread by horizon; None computes it from these trials with the first tuning seed.
    """
    candidates = [
        (point, readout, _losses(study, entry, point, readout, horizons, records, seeds))
        for point in points
        for readout in entry.readouts
    ]
    best = {h: min(losses[h] for _, _, losses in candidates) for h in horizons}
    units = spreads_of(study, entry, points, horizons, records) if spreads is None else spreads
    scored = [
        Choice(point, readout, losses, _regret(losses, best, units)) for point, readout, losses in candidates
    ]
    found: dict[tuple[tuple[str, float], ...], Choice] = {}
    for choice in sorted(scored, key=lambda choice: choice.score):
        found.setdefault(tuple(choice.point.items()), choice)
    return list(found.values())


def _losses(
    study: Study,
    entry: Entry,
    point: Point,
    readout: str,
    horizons: Sequence[int],
    records: Records,
    seeds: Sequence[int] | None,
) -> dict[int, float]:
    runs = [
        records[trial(study, entry, point, horizons[-1], seed).key(study)]
        for seed in seeds or study.tuning_seeds[:1]
    ]
    return {h: sum(run.value(h, readout, study.measure) for run in runs) / len(runs) for h in horizons}


def _regret(losses: Mapping[int, float], best: Mapping[int, float], units: Mapping[int, float]) -> float:
    if not all(map(math.isfinite, losses.values())):
        return math.inf
    return sum((losses[h] - best[h]) / units[h] for h in losses) / len(losses)


def spreads_of(
    study: Study, entry: Entry, points: Sequence[Point], horizons: Sequence[int], records: Records
) -> dict[int, float]:
    """Return, by horizon, how far the median trial is behind the best, each at its best readout there."""
    found = {}
    for h in horizons:
        values = [
            min(
                _losses(study, entry, point, readout, horizons, records, None)[h]
                for readout in entry.readouts
            )
            for point in points
        ]
        finite = [value for value in values if math.isfinite(value)]
        found[h] = (statistics.median(finite) - min(finite) if finite else 0.0) or 1.0
    return found


@dataclass
class Tuning:
    """Where the tuning of an optimizer stands.

    Attributes:
        trials: All runs that it has asked for so far.
        wanted: The runs among them that the records lack.
        choices: The best setting by horizon, where it is decided.
    """

    trials: list[Request] = field(default_factory=list)
    wanted: list[Request] = field(default_factory=list)
    choices: dict[int, Choice] = field(default_factory=dict)

    @property
    def decided(self) -> bool:
        """Whether no trial is wanted any more."""
        return not self.wanted

    def ask(self, study: Study, requests: Sequence[Request], records: Records) -> bool:
        """Note trials; whether all of them have been run."""
        missing = _missing(study, requests, records)
        self.trials += requests
        self.wanted += missing
        return not missing


def _missing(study: Study, requests: Iterable[Request], records: Records) -> list[Request]:
    return [request for request in requests if not is_done(study, request, records)]


def is_done(study: Study, request: Request, records: Records) -> bool:
    """Whether the records have all that a request wants."""
    record = records.get(request.key(study))
    return record is not None and record.satisfies(request, study)


def tuning(study: Study, entry: Entry, records: Records) -> Tuning:
    """Return where the tuning of an optimizer stands, and what it wants next.

    Without a horizon all points are run to the longest one, and once. With a horizon they are run to each of
    them anew; at the longest one, only the best of the horizon before.
    """
    state = Tuning()
    if not entry.scheduled:
        best = _rounds(study, entry, first_round(study, entry), study.horizons, records, state)
        state.choices = dict.fromkeys(study.horizons, best[0]) if best else {}
        return state
    *shorter, longest = study.horizons
    best = []
    for horizon in shorter:
        best = _rounds(study, entry, first_round(study, entry), (horizon,), records, state)
        if best:
            state.choices[horizon] = best[0]
    if best:
        points = [choice.point for choice in best[: study.reused]]
        best = _rounds(study, entry, points, (longest,), records, state, extend=False)
        if best:
            state.choices[longest] = best[0]
    return state


def _rounds(
    study: Study,
    entry: Entry,
    points: Sequence[Point],
    horizons: Sequence[int],
    records: Records,
    state: Tuning,
    *,
    extend: bool = True,
) -> list[Choice]:
    """Ask for trials with the first tuning seed, for some beyond an edge, and for more seeds of the best.

    Returns:
        The trials from the best on, first those that all tuning seeds have; none while a run is missing.
    """
    first, *others = study.tuning_seeds

    def run(chosen: Iterable[Point], seeds: Sequence[int]) -> bool:
        requests = [trial(study, entry, point, horizons[-1], seed) for point in chosen for seed in seeds]
        return state.ask(study, requests, records)

    if not run(points, [first]):
        return []
    order = ranked(study, entry, points, horizons, records)
    beyond = second_round(entry, points, order[0].point) if extend else []
    if not run(beyond, [first]):
        return []
    order = ranked(study, entry, [*points, *beyond], horizons, records)
    spreads = spreads_of(study, entry, [*points, *beyond], horizons, records)
    best = [choice.point for choice in order[: study.confirmed]]
    if not run(best, others):
        return []
    confirmed = ranked(study, entry, best, horizons, records, seeds=study.tuning_seeds, spreads=spreads)
    return [*confirmed, *order[study.confirmed :]]


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
