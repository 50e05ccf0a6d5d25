"""Verdicts of a study: the optimizers against the best scheduled one at each horizon, over paired seeds."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from amuse_lab.studies.reported import Reported, Values, reported
from amuse_lab.studies.statistics import CONFIDENCE, Interval, interval, log_weights, simultaneous_level
from amuse_lab.studies.study import Records, Study

AHEAD, BEHIND, LEVEL, UNDECIDED = WORDS = ("ahead", "behind", "level", "undecided")


def word(low: float, high: float, margin: float) -> str:
    """Return the verdict on a difference to the envelope, by its interval: see `rule`."""
    if high < 0:
        return AHEAD
    if low > 0:
        return BEHIND
    return LEVEL if -margin < low and high < margin else UNDECIDED


def size(low: float, high: float, margin: float) -> str:
    """Return how the interval of a difference lies to the margin: "less than", "more than", or neither."""
    if -margin < low and high < margin:
        return "less than"
    return "more than" if high < -margin or low > margin else ""


def rule(study: Study) -> str:
    """Return the rule of the verdicts in words, as pages and study.json give it; fixed before the runs."""
    margin = f"{study.margin:g}"
    return (
        f"At each horizon the envelope is the scheduled optimizer with the lowest {study.measure} in the "
        "tuning for that horizon, on the tuning seeds, which are never reported. The difference of an "
        f"optimizer's {study.measure} to the envelope's is paired over the seeds that both have, with a "
        f"{100 * CONFIDENCE:g} % t-interval. Ahead: the whole interval is below 0. Behind: it is above 0. "
        f"Level: it contains 0 and lies between -{margin} and {margin}, the margin that was set before the "
        "runs. Undecided: everything else, also whatever has fewer than two seeds. Whoever has a run that "
        "failed where the other has none is behind; where both have, it is undecided. "
        "Ahead and behind are by less than the margin where the interval lies within it, by more than the "
        "margin where it lies outside. The worst horizon is judged in the same way from intervals that hold "
        f"at all {len(study.horizons)} horizons at once (Bonferroni); the area under the curve from the mean "
        "of the differences over the logarithm of the step, seed by seed. No correction is made for the "
        "number of optimizers."
    )


@dataclass(frozen=True)
class Verdict:
    """An optimizer against the envelope at one horizon.

    Attributes:
        entry: Name of the optimizer.
        envelope: Name of the scheduled optimizer that is the envelope there.
        horizon: Number of training steps after which the two are compared.
        seeds: Seeds of which both have a reported run, by which the runs are paired.
        own: The optimizer's measure over these seeds.
        other: The envelope's measure over the same seeds.
        difference: Own minus other, paired; its `n` and `half` are to be shown with every word.
        simultaneous: The same with the interval that holds at all horizons at once.
        word: The verdict, one of `WORDS`, by the rule in `rule`.
        size: "less than" or "more than" the margin, or "" if the interval says neither.
    """

    entry: str
    envelope: str
    horizon: int
    seeds: tuple[int, ...]
    own: Interval
    other: Interval
    difference: Interval
    simultaneous: Interval
    word: str
    size: str

    @property
    def unpaired_sd(self) -> float:
        """Standard deviation that the difference of two runs of different seeds has."""
        return math.hypot(self.own.sd, self.other.sd)

    @property
    def pairing(self) -> float:
        """How many times as many seeds would be needed for the same precision if they were not paired."""
        paired = self.difference.sd
        return (self.unpaired_sd / paired) ** 2 if paired > 0 else math.nan


@dataclass(frozen=True)
class Overall:
    """An optimizer against the envelope over all horizons.

    Attributes:
        entry: Name of the optimizer.
        area: Mean of the difference over the logarithm of the step, over the seeds with all horizons.
        area_word: Verdict on `area`, one of `WORDS`.
        worst_horizon: The horizon with the largest mean difference.
        worst: The mean difference at that horizon; not a number if a run failed there.
        worst_low: With `worst_high` an interval of the largest true difference: the largest ends of the
            intervals that hold at all horizons at once.
        worst_high: Its upper end: at no horizon is the optimizer further behind than this.
        worst_word: Verdict on the worst horizon, one of `WORDS`, by `worst_low` and `worst_high`.
    """

    entry: str
    area: Interval
    area_word: str
    worst_horizon: int
    worst: float
    worst_low: float
    worst_high: float
    worst_word: str


@dataclass(frozen=True)
class Findings:
    """All that is reported of a study, and what follows from it.

    Attributes:
        study: Study whose records are reported.
        reported: The reported runs of each optimizer.
        envelope: Name of the scheduled optimizer that is the envelope, by horizon; the horizons for which a
            scheduled optimizer has been tuned.
        values: The study's measure at the chosen readouts, by optimizer, step and seed.
    """

    study: Study
    reported: Mapping[str, Reported]
    envelope: Mapping[int, str]
    values: Mapping[str, Values]

    def at(self, entry: str, step: int) -> dict[int, float]:
        """Return an optimizer's measure at a step by seed; empty if there is none."""
        return self.values[entry].get(step, {})

    def verdict(self, entry: str, horizon: int) -> Verdict | None:
        """Return the verdict on an optimizer at a horizon.

        Returns:
            None where it is the envelope itself, and where no seed has runs of both.
        """
        best = self.envelope.get(horizon)
        if best is None or best == entry:
            return None
        own, other = self.at(entry, horizon), self.at(best, horizon)
        seeds = tuple(seed for seed in own if seed in other)
        if not seeds:
            return None
        differences = [own[seed] - other[seed] for seed in seeds]
        difference = interval(differences)
        ends = (difference.low, difference.high, self.study.margin)
        failed = [any(math.isinf(values[seed]) for seed in seeds) for values in (own, other)]
        by_failure = {(True, False): BEHIND, (False, True): AHEAD}.get((failed[0], failed[1]))
        return Verdict(
            entry=entry,
            envelope=best,
            horizon=horizon,
            seeds=seeds,
            own=interval([own[seed] for seed in seeds]),
            other=interval([other[seed] for seed in seeds]),
            difference=difference,
            simultaneous=interval(differences, simultaneous_level(len(self.study.horizons))),
            word=by_failure or word(*ends),
            size="" if by_failure else size(*ends),
        )

    def verdicts(self, entry: str) -> dict[int, Verdict]:
        """Return the verdicts on an optimizer by horizon, those that there are."""
        found = ((horizon, self.verdict(entry, horizon)) for horizon in self.study.horizons)
        return {horizon: verdict for horizon, verdict in found if verdict is not None}

    def overall(self, entry: str) -> Overall | None:
        """Return the verdict on an optimizer over all horizons.

        Returns:
            None while a horizon is missing, and for an optimizer that is the envelope somewhere.
        """
        study, verdicts = self.study, self.verdicts(entry)
        if len(verdicts) < len(study.horizons):
            return None
        seeds = sorted(set.intersection(*(set(verdict.seeds) for verdict in verdicts.values())))
        weights = log_weights(study.horizons)
        area = interval([self._area(entry, seed, weights) for seed in seeds])
        worst = max(verdicts.values(), key=_rank)
        judged = verdicts.values()
        lost = any(each.word == BEHIND and math.isnan(each.difference.mean) for each in judged)
        low = max(verdict.simultaneous.low for verdict in verdicts.values())
        high = max(verdict.simultaneous.high for verdict in verdicts.values())
        return Overall(
            entry=entry,
            area=interval([math.inf for _ in seeds]) if lost else area,
            area_word=BEHIND if lost else word(area.low, area.high, study.margin),
            worst_horizon=worst.horizon,
            worst=worst.difference.mean,
            worst_low=low,
            worst_high=high,
            worst_word=BEHIND if lost else word(low, high, study.margin),
        )

    def _area(self, entry: str, seed: int, weights: list[float]) -> float:
        return math.fsum(
            weight * (self.at(entry, horizon)[seed] - self.at(self.envelope[horizon], horizon)[seed])
            for horizon, weight in zip(self.study.horizons, weights, strict=True)
        )


def _rank(verdict: Verdict) -> float:
    """Return a mean difference; where runs failed, how bad that is for the optimizer."""
    if math.isnan(verdict.difference.mean):
        return {AHEAD: -math.inf, BEHIND: math.inf}.get(verdict.word, sys.float_info.max)
    return verdict.difference.mean


def envelope(study: Study, found: Mapping[str, Reported]) -> dict[int, str]:
    """Return the name of the best scheduled optimizer by horizon.

    It is the one whose choice for that horizon has the lowest mean over the tuning seeds. Which one is the
    envelope is not read off the reported seeds: the best of several means of the same few seeds is too good
    by chance, and what is compared with it would look worse than it is.
    """
    best: dict[int, str] = {}
    for horizon in study.horizons:
        losses = {
            name: each.choices[horizon].losses[horizon]
            for name, each in found.items()
            if each.entry.scheduled and horizon in each.choices
        }
        finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
        if finite:
            best[horizon] = min(finite, key=lambda name: finite[name])
    return best


def findings(study: Study, records: Records) -> Findings:
    """Return what is reported of a study and what follows from it; the records may be incomplete."""
    found = reported(study, records)
    values = {name: each.values(study.measure) for name, each in found.items()}
    return Findings(study, found, envelope(study, found), values)
