"""The text and the tables of a page, as HTML."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from amuse_lab.studies import series
from amuse_lab.studies.records import study_to_json
from amuse_lab.studies.study import Entry, Record, Records, Study
from amuse_lab.studies.tuning import wanted
from amuse_lab.studies.verdicts import WORDS, Findings


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table that scrolls by itself where it is wider than the page; cells are HTML."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="table"><table>\n<thead><tr>{heads}</tr>'
        f"</thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def details(title: str, content: str, *, name: str = "") -> str:
    """Return what is shown when its title is chosen."""
    mark = f' id="{name}"' if name else ""
    return f"<details{mark}><summary>{title}</summary>\n{content}\n</details>"


def as_json(content: Any) -> str:
    """Return settings as text."""
    return f"<pre>{escape(json.dumps(content, indent=1, ensure_ascii=False))}</pre>"


def progress(study: Study, records: Records) -> str:
    """Say how far the study is."""
    missing = len(wanted(study, records))
    runs = f"{len(records):,} runs"
    if not missing:
        return f"{runs}, all that it asks for."
    return f"{runs} so far. <strong>It is not finished</strong>: at least {missing:,} runs are missing."


def answer(found: Findings) -> str:
    """Say at which horizons each optimizer is ahead, level and behind, those without a horizon first."""
    order = sorted(found.study.entries, key=lambda entry: entry.scheduled)
    lines = [f"<li>{text}</li>" for entry in order if (text := _answer(found, entry))]
    if not lines:
        return "<p>Nothing can be said yet: no seed has runs of an optimizer and of the envelope.</p>"
    return f"<ul>{''.join(lines)}</ul>"


def _answer(found: Findings, entry: Entry) -> str:
    verdicts = found.verdicts(entry.name)
    parts = []
    for word in WORDS:
        horizons = [f"{each.horizon:,}" for each in verdicts.values() if each.word == word]
        if horizons:
            parts.append(f"{word} at {', '.join(horizons)} steps")
    return f"<strong>{escape(entry.name)}</strong> is {'; '.join(parts)}." if parts else ""


def results(found: Findings) -> str:
    """Return the table of results: by optimizer and horizon the mean, the difference and the verdict."""
    study = found.study
    head = ["", *(f"{horizon:,} steps" for horizon in study.horizons)]
    rows = []
    for entry in sorted(study.entries, key=lambda entry: entry.scheduled):
        summaries = series.curve(found, entry)
        verdicts = found.verdicts(entry.name)
        cells = []
        for horizon in study.horizons:
            summary, verdict = summaries.get(horizon), verdicts.get(horizon)
            cell = "" if summary is None else f"{summary.mean:.4f} <small>({summary.seeds} seeds)</small>"
            if found.envelope.get(horizon) == entry.name:
                cell += "<br>the envelope"
            elif verdict is not None:
                cell += f"<br>{_difference(verdict.difference.mean, verdict.difference.half)}"
                cell += f"<br><strong>{verdict.word}</strong>"
            cells.append(cell)
        rows.append((escape(entry.name), *cells))
    return table(head, rows)


def _difference(mean: float, half: float) -> str:
    if math.isnan(mean):
        return "a run failed"
    return f"{mean:+.4f} ± {half:.4f}" if math.isfinite(half) else f"{mean:+.4f}, one seed"


def tuned(found: Findings) -> str:
    """Return the table of what tuning chose."""
    rows = []
    for entry in found.study.entries:
        choices = found.reported[entry.name].choices
        shown = choices.items() if entry.scheduled else list(choices.items())[-1:]
        for horizon, choice in shown:
            where = f"{horizon:,}" if entry.scheduled else "all"
            cells = (where, _point(choice.point), escape(choice.readout), f"{choice.score:.5g}")
            rows.append((escape(entry.name), *cells))
    return table(("optimizer", "horizon", "settings", "readout", "score"), rows)


def _point(point: Mapping[str, float]) -> str:
    return ", ".join(f"{escape(name)} {value:g}" for name, value in point.items())


def budgets(study: Study) -> str:
    """Say how the optimizers were tuned, and with which seeds they are reported."""
    return (
        f"<p>Tuning: {study.trials} trials fixed beforehand for each optimizer, with seed {study.tuning_seed}: "
        f"at each horizon if it is told where it ends (at the longest one the best {study.reused} of the horizon "
        f"before), once for all horizons otherwise (to {study.first_stage:,} steps, and the best "
        f"{study.finalists} of them to {study.longest:,}). Where the best trial has an extreme learning rate, "
        f"trials beyond it are added. The readout, the weights at which the model is evaluated, is chosen with "
        f"the settings. Reported: {len(study.reporting_seeds)} other seeds, {study.seeds_at_longest} of them at "
        f"{study.longest:,} steps. Warm-up: {study.warmup_steps} steps, for all.</p>"
    )


def setting(study: Study) -> str:
    """Return what every run has in common, and the settings of the optimizers."""
    content = study_to_json(study)
    parts = [details("Model, data, precision", as_json(content.pop("run")))]
    parts += [
        details(f"Settings of {escape(entry['name'])}, and ranges of what is tuned", as_json(entry))
        for entry in content.pop("entries")
    ]
    return "\n".join([*parts, details("The rest that was fixed before the runs", as_json(content))])


def runs(study: Study, records: Records) -> str:
    """Return the tables of all runs, one for each optimizer."""
    order = sorted(records.values(), key=lambda record: (record.seed, record.steps, record.key))
    parts = []
    for entry in study.entries:
        own = [record for record in order if record.entry == entry.name]
        if own:
            head = (
                "key",
                "seed",
                "steps",
                *map(escape, entry.tuned),
                study.measure,
                "readout",
                "s",
                "environment",
            )
            rows = [_run(study, entry, record) for record in own]
            parts.append(details(f"{escape(entry.name)}: {len(own)} runs", table(head, rows)))
    return "\n".join(parts)


def _run(study: Study, entry: Entry, record: Record) -> tuple[str, ...]:
    last = max(record.readings, default=0)
    values = record.readings.get(last, {})
    best = min(values, key=lambda readout: record.value(last, readout, study.measure), default="")
    value = record.value(last, best, study.measure)
    seed = f"{record.seed}, tuning" if record.seed == study.tuning_seed else f"{record.seed}"
    return (
        f"<code>{record.key}</code>",
        seed,
        f"{record.steps:,}",
        *(f"{record.point[name]:g}" for name in entry.tuned),
        f"{value:.5g}" if math.isfinite(value) else "",
        "failed" if record.failure is not None else escape(best),
        f"{record.seconds:.0f}",
        f'<a href="#{escape(record.environment)}">{escape(record.environment)}</a>',
    )


def failures(study: Study, records: Records) -> str:
    """Return the runs that did not come to their end."""
    failed = [record for record in records.values() if record.failure is not None]
    rows = [
        (
            f"<code>{record.key}</code>",
            escape(record.entry),
            f"{record.seed}",
            f"{record.steps:,}",
            _point(record.point),
            escape(record.failure or ""),
        )
        for record in sorted(failed, key=lambda record: (record.entry, record.seed, record.key))
    ]
    if not rows:
        return "<p>No run failed.</p>"
    return table(("key", "optimizer", "seed", "steps", "settings", "why"), rows)


def environments(records: Records, known: Mapping[str, Any]) -> str:
    """Return the environments of the runs, each with how many runs it had."""
    counts: dict[str, int] = {}
    for record in records.values():
        counts[record.environment] = counts.get(record.environment, 0) + 1
    return "\n".join(
        details(
            f"<code>{escape(name)}</code>: {counts[name]} runs",
            as_json(known[name]) if name in known else "<p>Not recorded.</p>",
            name=escape(name),
        )
        for name in sorted(counts)
    )
