"""The text and the tables of a page, as HTML."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from amuse_lab.studies.records import study_to_json
from amuse_lab.studies.results import NOTHING_YET, compared, sentence
from amuse_lab.studies.study import Entry, Record, Records, Study
from amuse_lab.studies.tuning import tuning_rule
from amuse_lab.studies.verdicts import Findings


def inline(markdown: str) -> str:
    """Return a line of the results' Markdown as HTML: bold letters and line breaks."""
    text = escape(markdown, quote=False).replace("&lt;br&gt;", "<br>").replace("\\|", "|")
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)


def from_markdown(text: str) -> str:
    """Return a table of the results' Markdown as HTML, or a line that stands in its place."""
    lines = text.splitlines()
    if not text.startswith("|"):
        return f"<p>{inline(text)}</p>"
    head, _, *rows = ([inline(cell) for cell in line[2:-2].split(" | ")] for line in lines)
    return table(head, rows, kind="results")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "runs") -> str:
    """Return a table that scrolls by itself where it is wider than the page; cells are HTML."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="table"><table class="{kind}">\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def details(title: str, content: str, *, name: str = "") -> str:
    """Return what is shown when its title is chosen."""
    mark = f' id="{name}"' if name else ""
    return f"<details{mark}><summary>{title}</summary>\n{content}\n</details>"


def as_json(content: Any) -> str:
    """Return settings as text."""
    return f"<pre>{escape(json.dumps(content, indent=1, ensure_ascii=False), quote=False)}</pre>"


def listed(lines: Iterable[str]) -> str:
    """Return lines of the results' Markdown as a list."""
    return f"<ul>{''.join(f'<li>{inline(line)}</li>' for line in lines)}</ul>"


def answer(found: Findings, named: str) -> str:
    """Say at which horizons each optimizer without a horizon is ahead, level and behind.

    Args:
        found: Findings of the study.
        named: What the optimizers are, in a sentence; empty if nothing is said of them.
    """
    lines = [sentence(found, entry) for entry in compared(found)]
    if not lines:
        return f"<p>{NOTHING_YET}</p>"
    title = "Against the scheduled optimizer that tuning preferred at each number of steps:"
    return f"<p>{title}</p>{listed(lines)}" + (f"<p>{escape(named)}</p>" if named else "")


def caveats(study: Study) -> str:
    """Return the limitations of the verdicts, if anything is said of them."""
    return f"<p>Limitations:</p>{listed(study.caveats)}" if study.caveats else ""


def changes(study: Study) -> str:
    """Return why the study was changed after its first runs, if it was."""
    return details("Changed after the first runs", listed(study.reasons)) if study.reasons else ""


def budgets(study: Study) -> str:
    """Say how the optimizers were tuned, and with which seeds they are reported."""
    return f"<p>{escape(tuning_rule(study))} Warm-up: {study.warmup_steps} steps, for all.</p>"


def setting(study: Study) -> str:
    """Return what every run has in common, and the settings of the optimizers."""
    content = study_to_json(study)
    del content["reasons"], content["caveats"]  # which the page has elsewhere
    parts = [details("Model, data, precision", as_json(content.pop("run")))]
    parts += [
        details(f"Settings of {escape(entry['name'])}, and ranges of what is tuned", as_json(entry))
        for entry in content.pop("entries")
    ]
    return "\n".join([*parts, details("The rest", as_json(content))])


def command(study: Study) -> str:
    """Return the command that makes the runs again."""
    return (
        f"<p>This command makes all these runs; every number of this page follows from them:</p>"
        f"<pre>amuse-lab compare {escape(study.name)} --records FOLDER --runs RUNS</pre>"
        f'<p class="note">It makes what FOLDER and the journal in RUNS lack: all of it where both are new. A '
        f"run is recognised by its key, a hash of its settings; where FOLDER has a copy of "
        f"<code>runs.jsonl</code> without its line and RUNS is new, that run alone is made again.</p>"
    )


def runs(study: Study, records: Records) -> str:
    """Return the tables of all runs, one for each optimizer."""
    order = sorted(records.values(), key=lambda record: (record.seed, record.steps, record.key))
    parts = []
    for entry in study.entries:
        own = [record for record in order if record.entry == entry.name]
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
        if own:
            parts.append(details(f"{escape(entry.name)}: {len(own)} runs", table(head, rows)))
    return "\n".join(parts)


def _run(study: Study, entry: Entry, record: Record) -> tuple[str, ...]:
    """What was set and found, the latter at the last evaluation and the readout that is the best there."""
    last = max(record.readings, default=0)
    readout = min(
        record.readings.get(last, {}), key=lambda name: record.value(last, name, study.measure), default=""
    )
    value = record.value(last, readout, study.measure)
    return (
        f"<code>{record.key}</code>",
        f"{record.seed}, tuning" if record.seed in study.tuning_seeds else f"{record.seed}",
        f"{record.steps:,}",
        *(f"{record.point[name]:g}" for name in entry.tuned),
        f"{value:.5g}" if math.isfinite(value) else "",
        "failed" if record.failure is not None else escape(readout),
        f"{record.seconds:.0f}",
        f'<a href="#{escape(record.environment)}">{escape(record.environment)}</a>',
    )


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
