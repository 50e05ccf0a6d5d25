"""The tables of a study's results in Markdown."""

import math
from collections.abc import Iterable, Sequence

from amuse_lab.studies import series
from amuse_lab.studies.frontier import Reach, envelope_steps_to, extra_steps, steps_to_envelope
from amuse_lab.studies.statistics import Interval, interval
from amuse_lab.studies.study import Point, Records, Study
from amuse_lab.studies.tuning import tuning
from amuse_lab.studies.verdicts import AHEAD, BEHIND, Findings, Verdict

NOTHING = "-"
_FAILED = "n/a"


def plain(found: Interval) -> str:
    """Return a mean with the half-width of its interval, which one seed does not have."""
    if math.isnan(found.mean):
        return _FAILED
    return f"{found.mean:.4f}{_half(found)}"


def signed(found: Interval) -> str:
    """Return a mean difference with its sign and the half-width of its interval."""
    return _FAILED if math.isnan(found.mean) else f"{_difference(found.mean)}{_half(found)}"


def _half(found: Interval) -> str:
    return f" ± {found.half:.4f}" if math.isfinite(found.half) else ""


def _difference(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"  # + 0.0: no zero has a minus


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_horizon(study: Study, first: str) -> list[str]:
    return [first, *(f"{horizon:,}" for horizon in study.horizons)]


def loss_table(found: Findings, names: Sequence[str], readout: str | None = None) -> str:
    """Return the means of the measure by optimizer and horizon, the envelope in bold.

    Args:
        found: Findings of the study: the reported runs and the envelope.
        names: Names of the optimizers, each of which gets a row, in this order.
        readout: Readout whose values are shown, such as "x"; None means the one that tuning chose.
    """
    return _means(found, names, found.study.measure, readout)


def beside_table(found: Findings, names: Sequence[str]) -> str:
    """Return the means of what is reported beside the measure."""
    return _means(found, names, str(found.study.beside), None)


def _means(found: Findings, names: Sequence[str], measure: str, readout: str | None) -> str:
    rows = []
    for name in names:
        values = found.reported[name].values(measure, readout)
        cells = []
        for horizon in found.study.horizons:
            seeds = list(values.get(horizon, {}).values())
            cell = f"{plain(interval(seeds))} ({len(seeds)})" if seeds else NOTHING
            cells.append(f"**{cell}**" if found.envelope.get(horizon) == name and seeds else cell)
        rows.append([name, *cells])
    return table(_by_horizon(found.study, measure), rows)


def difference_table(found: Findings, names: Sequence[str], *, sized: bool = True) -> str:
    """Return the differences to the envelope with their verdicts.

    Args:
        found: Findings of the study.
        names: Names of the optimizers, each of which gets a row, in this order.
        sized: Whether verdicts say by less or by more than the margin; False leaves the latter out.
    """
    rows = []
    for name in names:
        verdicts = found.verdicts(name)
        cells = [
            _judged(verdicts[horizon], sized=sized) if horizon in verdicts else NOTHING
            for horizon in found.study.horizons
        ]
        best = [found.envelope.get(horizon) == name for horizon in found.study.horizons]
        cells = ["envelope" if own else cell for own, cell in zip(best, cells, strict=True)]
        rows.append([name, *cells])
    return table(_by_horizon(found.study, "difference"), rows)


def _judged(verdict: Verdict, *, sized: bool) -> str:
    told = verdict.word in (AHEAD, BEHIND) and verdict.size and (sized or verdict.size == "less than")
    size = f", by {verdict.size} the margin" if told else ""
    return f"{signed(verdict.difference)} ({verdict.difference.n})<br>**{verdict.word}**{size}"


def overall_table(found: Findings, names: Sequence[str]) -> str:
    """Return the verdicts over all horizons."""
    rows = []
    for name in names:
        overall = found.overall(name)
        if overall is None:
            rows.append([name, NOTHING, NOTHING, NOTHING])
            continue
        bounded = math.isfinite(overall.worst_low) and math.isfinite(overall.worst_high)
        bounds = (
            f"{_difference(overall.worst_low)} to {_difference(overall.worst_high)}"
            if bounded
            else "unbounded"
        )
        worst = _FAILED if math.isnan(overall.worst) else _difference(overall.worst)
        rows.append(
            [
                name,
                f"{signed(overall.area)} ({overall.area.n})<br>**{overall.area_word}**",
                f"{worst} at {overall.worst_horizon:,}",
                f"{bounds}<br>**{overall.worst_word}**",
            ]
        )
    head = ["", "mean over the logarithm of the step", "worst horizon", "worst difference, all at once"]
    return table(head, rows)


def steps_table(found: Findings, names: Sequence[str]) -> str:
    """Return the steps to reach the envelope, those of the envelope, and the share of steps by the slope."""
    rows = []
    for name in names:
        verdicts = found.verdicts(name)
        cells = []
        for horizon in found.study.horizons:
            share = extra_steps(found, verdicts[horizon]) if horizon in verdicts else None
            parts = [
                _reached(steps_to_envelope(found, name, horizon)),
                _reached(envelope_steps_to(found, name, horizon)),
                NOTHING if share is None else _percent(share),
            ]
            cells.append(NOTHING if parts == [NOTHING] * 3 else "<br>".join(parts))
        rows.append([name, *cells])
    return table(_by_horizon(found.study, "steps"), rows)


def _reached(reach: Reach | None) -> str:
    if reach is None:
        return NOTHING
    limit = {"at": "", "before": "at most ", "beyond": "more than "}[reach.crossing.where]
    return f"{limit}{reach.crossing.steps:,.0f} ({len(reach.seeds)})"


def _percent(share: Interval) -> str:
    if math.isnan(share.mean):
        return _FAILED
    half = f" ± {share.half:.1%}" if math.isfinite(share.half) else ""
    return f"{round(share.mean, 3) + 0.0:+.1%}{half}"


def pairing_table(found: Findings, names: Sequence[str]) -> str:
    """Return what the pairing of seeds buys at each horizon."""
    rows = []
    for name in names:
        verdicts = found.verdicts(name)
        cells = []
        for horizon in found.study.horizons:
            verdict = verdicts.get(horizon)
            if verdict is None or math.isnan(verdict.difference.sd):
                cells.append(NOTHING)
                continue
            times = "" if math.isnan(verdict.pairing) else f", {verdict.pairing:.1f} times"
            cells.append(f"{verdict.difference.sd:.4f} / {verdict.unpaired_sd:.4f}{times}")
        rows.append([name, *cells])
    return table(_by_horizon(found.study, "sd"), rows)


def settings_table(found: Findings, records: Records) -> str:
    """Return what tuning chose for each optimizer, at each horizon for those that have one.

    A value that is the smallest or the largest of all trials of the optimizer is marked.
    """
    rows = []
    for name, each in found.reported.items():
        tried = [request.point for request in tuning(found.study, each.entry, records).trials]
        choices = sorted(each.choices.items())
        if not each.entry.scheduled:
            choices = choices[-1:]
        for horizon, choice in choices:
            until = f"{horizon:,}" if each.entry.scheduled else "all"
            losses = " / ".join(f"{loss:.4f}" for loss in choice.losses.values())
            rows.append([name, until, _point(choice.point, tried), choice.readout, losses])
    head = [
        "",
        "horizon",
        "settings",
        "readout",
        f"{found.study.measure} in tuning (of all: at each horizon)",
    ]
    return table(head, rows) if rows else "Nothing is tuned yet."


def _point(point: Point, tried: Sequence[Point] = ()) -> str:
    """The settings of a run; at an edge of what was tried, if that is given, there is a word on it."""
    edges = {name: {end([each[name] for each in tried]) for end in (min, max)} for name in point if tried}
    marked = {name: " (edge)" if value in edges.get(name, ()) else "" for name, value in point.items()}
    return ", ".join(f"{name} {value:g}{marked[name]}" for name, value in point.items())


def readouts_table(found: Findings, records: Records) -> str:
    """Return what each readout of the chosen trial is behind the best of them, in thousandths."""
    study = found.study
    rows = []
    for entry in study.entries:
        losses = series.readout_losses(found, entry, records) if len(entry.readouts) > 1 else {}
        for readout in entry.readouts if losses else ():
            cells = [
                f"{1000 * losses[horizon][readout]:.0f}"
                if math.isfinite(losses.get(horizon, {}).get(readout, math.inf))
                else NOTHING
                for horizon in study.horizons
            ]
            rows.append([f"{entry.name}, {readout}", *cells])
    return table(_by_horizon(study, "readout"), rows) if rows else "Each optimizer has one readout."


def counts_table(found: Findings, records: Records) -> str:
    """Return how many trials and steps the tuning of each optimizer took, and how many seeds are reported."""
    study = found.study
    rows = []
    for entry in study.entries:
        asked = {request.key(study) for request in tuning(study, entry, records).trials}
        trials = [records[key] for key in asked if key in records]
        values = found.values[entry.name]
        seeds = [str(len(values.get(horizon, {}))) for horizon in study.horizons]
        steps = sum(record.steps for record in trials)
        rows.append([entry.name, str(len(trials)), f"{steps:,}", " / ".join(seeds)])
    return table(["", "runs of tuning", "their steps", "seeds reported, by horizon"], rows)


def failures_list(study: Study, records: Records) -> str:
    """Return the runs that failed, trials and reported ones."""
    order = [entry.name for entry in study.entries]
    failed = sorted(
        (record for record in records.values() if record.failure is not None and record.entry in order),
        key=lambda record: (order.index(record.entry), record.seed, record.steps, record.key),
    )
    if not failed:
        return "No run failed."
    rows = [
        [
            record.entry,
            f"{'trial' if record.seed in study.tuning_seeds else 'reported'}, seed {record.seed}",
            _point(record.point),
            f"{record.steps:,}",
            " ".join(str(record.failure).replace("|", "\\|").split()),
        ]
        for record in failed
    ]
    return table(["", "run", "settings", "steps done", "why"], rows)
