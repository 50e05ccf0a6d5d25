"""The charts of a page as data in JSON's types; `page.js` draws them."""

import math
from typing import Any

from amuse_lab.studies import drawing, series
from amuse_lab.studies.looks import GREY, MARKERS, SHADES, look
from amuse_lab.studies.page import frame
from amuse_lab.studies.study import Entry, Record, Records, Study
from amuse_lab.studies.verdicts import Findings

Json = dict[str, Any]

_MOST = 300  # points of a curve


def anytime(found: Findings, _records: Records) -> Json:
    """The loss against steps, with the envelope of the scheduled runs."""
    study = found.study
    lines, ends = [], []
    for entry in study.entries:
        own = [(step, value) for step, value in series.curve(found, entry).items()]
        own = [(step, value) for step, value in own if 2 * step >= study.horizons[0]]
        bounds = ([value.low for _, value in own], [value.high for _, value in own])
        points = [(step, value.mean) for step, value in own]
        if points and entry.scheduled:
            ends.append(frame.series(_style(study, entry, line=False), points, bounds, "band"))
        elif points:
            lines.append(frame.series(_style(study, entry), points, bounds, "band"))
    grey = [
        frame.series(frame.line(f"training loss of {entry.name}, {horizon:,} steps", GREY), points)
        for entry in study.entries
        if entry.scheduled
        for horizon in study.horizons
        if (
            points := [
                p
                for p in series.thinned(series.training(found, entry, horizon), _MOST)
                if 2 * p[0] >= study.horizons[0]
            ]
        )
    ]
    best = series.envelope(found)
    dotted = frame.line("envelope of scheduled runs", "#000000", dotted=True)
    line = [frame.series(dotted, best)] if best else []
    values = [y for each in (*lines, *ends) for y in each["y"]]
    return frame.chart(
        "anytime",
        "Loss against steps",
        ("steps", drawing.measure(study)),
        [
            {"name": "without the training losses of scheduled runs", "series": lines + line + ends},
            {"name": "with them, in grey", "series": grey + lines + line + ends},
        ],
        log={"x": "log", "y": "log"},
        checked="x",
        ticks=study.horizons,
        fit=[min(values), max(values)] if values else None,
    )


def difference(found: Findings, _records: Records) -> Json:
    """What each optimizer is behind the envelope by horizon."""
    study = found.study
    shown = []
    for entry in study.entries:
        own = [each for each in found.verdicts(entry.name).values() if math.isfinite(each.difference.mean)]
        points = [(each.horizon, each.difference.mean) for each in own]
        ends = [
            (d.low, d.high) if math.isfinite(d.half) else (d.mean, d.mean)
            for d in (e.difference for e in own)
        ]
        if points:
            bounds = ([low for low, _ in ends], [high for _, high in ends])
            shown.append(frame.series(_style(study, entry), points, bounds, "bars"))
    return frame.chart(
        "difference",
        "Difference to the envelope",
        ("steps", f"{study.measure} minus the envelope's"),
        [{"name": "all", "series": shown}],
        log={"x": "log", "y": "asinh"},
        checked="xy",
        ticks=study.horizons,
        linear=2 * study.margin,
        zero=0,
        band=[-study.margin, study.margin],
    )


def steps(found: Findings, _records: Records) -> Json:
    """Steps to the envelope's loss over the horizon; bounds are marks of their own."""
    shown = []
    for entry in found.study.entries:
        reached, bounds = series.steps_to_envelope(found, entry)
        if reached:
            shown.append(frame.series(_style(found.study, entry), reached))
        if bounds:
            style = _style(found.study, entry, line=False) | {"name": f"{entry.name}, bounds", "hollow": True}
            shown.append(frame.series(style | {"small": True}, bounds))
    return frame.chart(
        "steps",
        "Steps to the envelope's loss",
        ("steps of the envelope", "steps needed, as a share"),
        [{"name": "all", "series": shown}],
        log={"x": "log", "y": "log"},
        checked="xy",
        ticks=found.study.horizons,
        zero=1,
    )


def learning_rate(found: Findings, records: Records) -> Json:
    """What the trials of an optimizer are behind its best one, against the learning rate."""
    study = found.study
    groups = []
    for entry in study.entries:
        shown = []
        tried = series.tried(study, entry, records)
        for number, horizon in enumerate(study.horizons):
            points = sorted((each.point["lr"], each.value) for each in tried if each.horizon == horizon)
            best = min((value for _, value in points), default=0.0)
            style = {
                "name": f"{horizon:,} steps",
                "color": SHADES[number % len(SHADES)],
                "marker": list(MARKERS)[number % len(MARKERS)],
                "hollow": True,
                "line": False,
            }
            if points:
                shown.append(frame.series(style, [(lr, value - best) for lr, value in points]))
        if shown:
            groups.append({"name": entry.name, "series": shown})
    return frame.chart(
        "learning-rate",
        "Sensitivity to the learning rate",
        ("learning rate", f"{study.measure} behind the best trial"),
        groups,
        log={"x": "log", "y": "asinh"},
        checked="xy",
        linear=2 * study.margin,
        zero=0,
    )


def single_runs(found: Findings, _records: Records) -> Json:
    """The training loss of each reported run, uncut, and what its evaluations found."""
    study = found.study
    groups = []
    for entry in study.entries:
        for run in found.reported[entry.name].runs:
            record = run.record
            name = f"{entry.name}, seed {record.seed}, {record.steps:,} steps ({record.key})"
            shown: dict[str, list[Json]] = {}
            if record.training:
                points = series.thinned(record.training, _MOST)
                shown["loss"] = [frame.series(frame.line("training loss", "#555555"), points)]
            for measure in filter(None, (study.measure, study.beside)):
                points = _measured(record, run.choice.readout, measure)
                style = _style(study, entry) | {"name": f"validation {measure} at {run.choice.readout}"}
                if points:
                    shown.setdefault(measure, []).append(frame.series(style, points))
            for measure, lines in shown.items():
                label = "loss (nats)" if measure == "loss" else measure
                groups.append({"name": f"{name}: {measure}", "label": label, "series": lines})
    return frame.chart(
        "single-runs",
        "A single run",
        ("steps", "loss"),
        groups,
        log={"x": "log", "y": "log"},
        checked="x",
    )


CHARTS = (anytime, difference, steps, learning_rate, single_runs)
"""The charts, in the order of the page."""


def _measured(record: Record, readout: str, measure: str) -> series.Points:
    values = [(step, record.value(step, readout, measure)) for step in record.readings]
    return [(step, value) for step, value in values if math.isfinite(value)]


def _style(study: Study, entry: Entry, *, line: bool = True) -> Json:
    return frame.style(look(study, entry), entry.name, hollow=entry.scheduled, line=line)
