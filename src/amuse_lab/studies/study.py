"""What a study is: its question, its optimizers, horizons and seeds, and the runs that it consists of."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from amuse_lab.config import OptimizerConfig, RunConfig, TaskConfig, to_json
from amuse_lab.errors import require
from amuse_lab.studies.posthoc import LARGEST_RESIDUAL, residual
from amuse_lab.studies.readouts import parsed

Point = Mapping[str, float]
"""Values of the settings of an optimizer that are tuned, by their names."""


@dataclass(frozen=True)
class Scale:
    """The range of a setting that is tuned, in which trials are spread evenly by the logarithm.

    Attributes:
        low: Lower end of the range, positive; later trials of a learning rate may lie beyond it.
        high: Upper end of the range; later trials of a learning rate may lie beyond it.
        complement: Spread 1 minus the value instead; for decays close to 1.
        whole: Whether values are rounded to whole numbers.
    """

    low: float
    high: float
    complement: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        require(0 < self.low < self.high, "low", f"positive and below high = {self.high}", self.low)
        require(not self.complement or self.high < 1, "high", "below 1 with complement", self.high)

    def at(self, share: float) -> float:
        """Return the value at a share of the range: 0 gives low, 1 gives high; both may be exceeded."""
        low, high = (1 - self.low, 1 - self.high) if self.complement else (self.low, self.high)
        value = low * (high / low) ** share
        value = 1 - value if self.complement else value
        return round(value) if self.whole else float(f"{value:.4g}")

    def share(self, value: float) -> float:
        """Return the share of the range at which a value lies: the inverse of `at`, up to rounding."""
        low, high = (1 - self.low, 1 - self.high) if self.complement else (self.low, self.high)
        return math.log((1 - value if self.complement else value) / low) / math.log(high / low)


@dataclass(frozen=True)
class Entry:
    """An optimizer in a study.

    Attributes:
        name: What tables and figures call it.
        optimizer: Its settings, apart from those that are tuned.
        tuned: Ranges of the settings that are tuned, by their names.
        readouts: Points that it can be evaluated at, see `readouts.py`; one of them is chosen by tuning.
        scheduled: Whether it is told where it ends: then it is tuned and run for each horizon; otherwise it
            has one setting, and one run passes all horizons.
        about: What it is, in a few words for those who read the results.
    """

    name: str
    optimizer: OptimizerConfig
    tuned: Mapping[str, Scale]
    readouts: tuple[str, ...] = ("x",)
    scheduled: bool = False
    about: str = ""

    def at(self, point: Point) -> OptimizerConfig:
        """Return the optimizer with these values of what is tuned."""
        return replace(self.optimizer, **point)


@dataclass(frozen=True)
class Study:
    """A comparison of optimizers, fixed before its runs.

    Attributes:
        name: Names its folder of records.
        question: What it asks, in a sentence or two.
        run: Model, data, precision and threads of every run; its optimizer, seed and steps are replaced.
        entries: The optimizers that are compared, in the order in which they are tuned.
        horizons: Steps after which the optimizers are compared, ascending.
        warmup_steps: Warm-up of every optimizer, for the record.
        trials: Points that are tried for each optimizer, at each horizon if it is scheduled.
        reused: How many of the best points at the horizon before are tried at the longest one, instead of
            `trials` new ones, for an optimizer with a horizon.
        tuning_seeds: Seeds of the trials: all of them are run with the first one, the best few with all.
        confirmed: How many of the best trials are run with all tuning seeds.
        reporting_seeds: Seeds of the runs that are reported; none of them is a tuning seed.
        seeds_at_longest: How many of these are run to the longest horizon.
        kept: Kappas of the averages that are kept where a readout needs one that is not; see `readouts.py`.
        measure: What decides, of the values of an evaluation.
        beside: What is reported beside it; None if nothing is.
        margin: Difference in `measure` below which two optimizers are level, see `verdicts.rule`.
        reasons: Why the study was changed after its first runs, in the order of the changes.
        caveats: Limitations of its verdicts, sentences that stand beside them.
        judged: Task of the reported runs where they are evaluated on other data than the trials: the task of
            `run` but for what is free, which changes no training step. None if it is the same.
    """

    name: str
    question: str
    run: RunConfig
    entries: tuple[Entry, ...]
    horizons: tuple[int, ...]
    warmup_steps: int
    trials: int = 12
    reused: int = 3
    tuning_seeds: tuple[int, ...] = (0, 1, 2)
    confirmed: int = 3
    reporting_seeds: tuple[int, ...] = (11, 12, 13, 14, 15, 16, 17, 18)
    seeds_at_longest: int = 5
    kept: tuple[float, ...] = (5.0, 20.0)
    measure: str = "loss"
    beside: str | None = None
    margin: float = 0.005
    reasons: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    judged: TaskConfig | None = None
    _keys: dict[Any, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ascending = list(self.horizons) == sorted(set(self.horizons)) and len(self.horizons) > 1
        require(ascending, "horizons", "at least two, ascending", self.horizons)
        names = [entry.name for entry in self.entries]
        require(len(set(names)) == len(names), "entries", "of different names", names)
        for entry in self.entries:
            unknown = [name for name in entry.tuned if not hasattr(entry.optimizer, name)]
            require(not unknown, "tuned", f"settings of {entry.optimizer.name}", unknown)
            for readout in entry.readouts:
                self._check_readout(readout)
        enough = 1 <= self.seeds_at_longest <= len(self.reporting_seeds)
        require(enough, "seeds_at_longest", f"from 1 to {len(self.reporting_seeds)}", self.seeds_at_longest)
        apart = not set(self.tuning_seeds) & set(self.reporting_seeds)
        require(apart, "reporting_seeds", f"without a tuning seed {self.tuning_seeds}", self.reporting_seeds)
        require(len(self.tuning_seeds) > 0, "tuning_seeds", "at least one", self.tuning_seeds)
        if self.judged is not None:
            own, other = (decisive(replace(self.run, task=task)) for task in (self.run.task, self.judged))
            require(own == other, "judged", f"the task of run but for {sorted(self.judged.free)}", other)

    def _check_readout(self, readout: str) -> None:
        """Refuse what is no readout, and an average that those that are kept do not make at each horizon."""
        kind, kappa = parsed(readout)
        if kind == "power" and kappa not in self.kept:
            worst = max(residual(self.kept, kappa, horizon) for horizon in self.horizons)
            within = f"those of kept = {self.kept} or within {LARGEST_RESIDUAL:.0%} of what they make"
            require(worst <= LARGEST_RESIDUAL, "readouts", within, f"{readout}, {worst:.1%} beside it")

    @property
    def longest(self) -> int:
        """The longest horizon, in steps."""
        return self.horizons[-1]

    @property
    def curve(self) -> tuple[int, ...]:
        """Steps at which reported runs are evaluated: the horizons, and five a doubling between them."""
        first, count = self.horizons[0] / 4, round(5 * math.log2(4 * self.longest / self.horizons[0]))
        between = {round(first * 2 ** (n / 5)) for n in range(count + 1)}
        return tuple(sorted(between | set(self.horizons)))

    def entry(self, name: str) -> Entry:
        """Return the entry of this name."""
        return next(entry for entry in self.entries if entry.name == name)

    def seeds(self, horizon: int) -> tuple[int, ...]:
        """Return the seeds that are reported at a horizon."""
        count = self.seeds_at_longest if horizon == self.longest else len(self.reporting_seeds)
        return self.reporting_seeds[:count]


def decisive(run: RunConfig) -> dict[str, Any]:
    """Return what of the task of a run decides its training steps."""
    return {name: value for name, value in to_json(run)["task"].items() if name not in run.task.free}


@dataclass(frozen=True)
class Request:
    """One run of a study.

    Attributes:
        entry: Name of the optimizer in the study.
        point: Values of its tuned settings.
        seed: Seed of the initial weights and of the batches.
        steps: Number of training steps that it is to have.
        reported: Whether it is reported; otherwise it is a trial of the tuning.
        readouts: Points at which the model is evaluated, such as "x" and "power 20", see `readouts.py`.
    """

    entry: str
    point: Point = field(hash=False)
    seed: int
    steps: int
    reported: bool
    readouts: tuple[str, ...]

    def config(self, study: Study) -> RunConfig:
        """Return what is run."""
        optimizer = study.entry(self.entry).at(self.point)
        task = (study.judged if self.reported else None) or study.run.task
        return replace(study.run, task=task, optimizer=optimizer, seed=self.seed, steps=self.steps)

    def wanted_at(self, study: Study) -> tuple[int, ...]:
        """Return the steps at which it is evaluated."""
        if study.entry(self.entry).scheduled:
            return (self.steps,)
        steps = study.curve if self.reported else study.horizons
        return tuple(step for step in steps if step <= self.steps)

    def key(self, study: Study) -> str:
        """Return the hash by which the run is recognised.

        It covers all that decides a training step, and how many steps there are where the optimizer is told
        so: of an optimizer without a horizon, a short run is the beginning of a long one.
        """
        steps = self.steps if study.entry(self.entry).scheduled else None
        run = (self.entry, tuple(self.point.items()), self.seed, steps)
        if run not in study._keys:  # tuning asks for each of them many times
            study._keys[run] = self._hashed(study, steps)
        return study._keys[run]

    def _hashed(self, study: Study, steps: int | None) -> str:
        config = self.config(study)
        content = to_json(config)
        counted = {
            "task": decisive(config),
            "optimizer": content["optimizer"],
            "seed": self.seed,
            "clip": content["clip"],
            "precision": content["precision"],
            "steps": steps,
        }
        return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Record:
    """What is kept of a run.

    Attributes:
        key: Hash by which the run is recognised, from `Request.key`.
        entry: Name of the optimizer in the study.
        point: Values of its tuned settings.
        seed: Seed of the run.
        steps: Training steps that were done, fewer than asked for if it failed.
        scheduled: Whether it was told to end there.
        readings: What evaluations measured, by step, readout and name of the value.
        training: Means of the training loss, each with the last step that it covers.
        seconds: Time of the training steps and evaluations, in seconds.
        environment: Hash of the environment, see `records`.
        failure: Why it did not come to its end, in words; None if it did.
    """

    key: str
    entry: str
    point: Point
    seed: int
    steps: int
    scheduled: bool
    readings: Mapping[int, Mapping[str, Mapping[str, float]]]
    training: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    environment: str = ""
    failure: str | None = None

    def value(self, step: int, readout: str, name: str) -> float:
        """Return a reading; infinite where there is none, as after a failure."""
        return self.readings.get(step, {}).get(readout, {}).get(name, math.inf)

    def merged(self, newer: "Record") -> "Record":
        """Return what counts of this record and a newer one of the same run: a failure, else the longer one.

        Of two that are equally long, the newer one with the readings of both.
        """
        own, other = ((record.failure is not None, record.steps) for record in (self, newer))
        if own != other:
            return max(self, newer, key=lambda record: (record.failure is not None, record.steps))
        steps = sorted({*self.readings, *newer.readings})
        both = {step: {**self.readings.get(step, {}), **newer.readings.get(step, {})} for step in steps}
        return replace(newer, readings=both)

    def satisfies(self, request: Request, study: Study) -> bool:
        """Whether the request needs no run any more; what has failed once is not tried again."""
        if self.failure is not None:
            return True
        measured = all(
            readout in self.readings.get(step, {})
            for step in request.wanted_at(study)
            for readout in request.readouts
        )
        return self.steps >= request.steps and measured


Records = Mapping[str, Record]
"""The records of a study by their keys."""
