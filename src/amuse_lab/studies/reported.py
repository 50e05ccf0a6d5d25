"""What is reported of the optimizers of a study: the runs of their chosen settings, seed by seed."""

from collections.abc import Mapping
from dataclasses import dataclass

from amuse_lab.studies.study import Entry, Record, Records, Study
from amuse_lab.studies.tuning import Choice, reports, tuning

Values = dict[int, dict[int, float]]
"""What was measured, by step and seed, both ascending."""


@dataclass(frozen=True)
class ReportedRun:
    """A reported run that has been made.

    Attributes:
        choice: Settings and readout of the run, which tuning chose.
        planned: Steps at which it was to be evaluated.
        record: What is kept of the run: its evaluations, and why it failed if it did.
    """

    choice: Choice
    planned: tuple[int, ...]
    record: Record

    def values(self, measure: str, readout: str) -> dict[int, float]:
        """Return what was measured at a readout by step; infinite from a failure on."""
        record = self.record
        steps = {step for step, values in record.readings.items() if readout in values}
        if record.failure is not None:
            steps |= {step for step in self.planned if step not in record.readings}
        return {step: record.value(step, readout, measure) for step in sorted(steps)}


@dataclass(frozen=True)
class Reported:
    """What is reported of one optimizer, as far as its runs have been made.

    Attributes:
        entry: The optimizer as an entry of the study: its name, settings and ranges.
        choices: What tuning chose, by horizon; the horizons that are decided.
        runs: The reported runs that have been made; none of them has the tuning seed.
        missing: How many more are wanted of the horizons that are decided.
    """

    entry: Entry
    choices: Mapping[int, Choice]
    runs: tuple[ReportedRun, ...]
    missing: int

    def values(self, measure: str, readout: str | None = None) -> Values:
        """Return what the reported runs measured.

        Args:
            measure: Name of the value among those of an evaluation, such as "loss".
            readout: Where it was evaluated, "x" for instance; None is the readout that tuning chose.

        Returns:
            Values by step and seed: at each horizon those of the runs that were told to end there, or along
            the curve for an optimizer without a horizon. A value is infinite where the run had failed before
            or the value was not finite, and left out where nothing has been measured yet.
        """
        found: Values = {}
        for run in self.runs:
            for step, value in run.values(measure, readout or run.choice.readout).items():
                found.setdefault(step, {})[run.record.seed] = value
        return {step: dict(sorted(found[step].items())) for step in sorted(found)}


def reported(study: Study, records: Records) -> dict[str, Reported]:
    """Return what is reported of each optimizer, by its name, from records that may be incomplete."""
    found: dict[str, Reported] = {}
    for entry in study.entries:
        choices = tuning(study, entry, records).choices
        runs: list[ReportedRun] = []
        missing = 0
        for _, request in reports(study, entry, choices):
            record = records.get(request.key(study))
            if record is None or not record.satisfies(request, study):
                missing += 1
            if record is not None:
                choice = choices[request.steps if entry.scheduled else study.longest]
                runs.append(ReportedRun(choice, request.wanted_at(study), record))
        found[entry.name] = Reported(entry, choices, tuple(runs), missing)
    return found
