"""The results of studies as Markdown, from their records only, byte for byte the same each time."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from amuse_lab.errors import RecordError
from amuse_lab.studies.frontier import STEPS_TO_REACH
from amuse_lab.studies.published import FIGURES, PAPER
from amuse_lab.studies.study import Entry, Records, Study
from amuse_lab.studies.tables import (
    beside_table,
    counts_table,
    difference_table,
    failures_list,
    loss_table,
    overall_table,
    pairing_table,
    settings_table,
    signed,
    steps_table,
)
from amuse_lab.studies.tuning import tuning, tuning_rule, wanted
from amuse_lab.studies.verdicts import AHEAD, BEHIND, WORDS, Findings, Verdict, findings, rule

BEGINS = "<!-- results -->"
ENDS = "<!-- /results -->"

NOTHING_YET = "Nothing can be said yet: no seed has runs of both sides."

_WIDTH = 118

Pictures = Mapping[str, Mapping[str, str]]
"""Paths of the pictures of each study by the figure's name, relative to the page that shows them."""


def results_page(studies: Iterable[tuple[Study, Records]], pictures: Pictures | None = None) -> str:
    """Return docs/results.md.

    Args:
        studies: Studies with their records, which may be incomplete.
        pictures: The studies' figures, relative to docs.

    Returns:
        Markdown with a line end at its end.
    """
    parts = [
        "# Results",
        _wrapped(
            "Generated from the records of the studies; `make report` writes this page again, byte for byte. "
            "A mean stands with the half-width of its 95 % t-interval and, in brackets, the number of seeds; "
            "n/a stands where a run failed."
        ),
    ]
    for study, records in studies:
        parts += _section(findings(study, records), records, (pictures or {}).get(study.name, {}))
    parts += ["## What the paper reports", _wrapped(PAPER), *_paper_list()]
    return "\n\n".join(parts) + "\n"


def readme_block(studies: Iterable[tuple[Study, Records]], pictures: Pictures | None = None) -> str:
    """Return what stands between the markers in README.md.

    Args:
        studies: Studies with their records, which may be incomplete.
        pictures: The studies' figures, relative to README.md, of which it shows the anytime curve.
    """
    parts: list[str] = []
    for study, records in studies:
        found = findings(study, records)
        if not compared(found):
            told = f"**{study.name}.** {study.question} {NOTHING_YET} {progress(study, records)}"
            parts.append(_wrapped(told))
            continue
        parts += _picture(study, (pictures or {}).get(study.name, {}))
        parts.append(
            _wrapped(
                f"**{study.name}.** {study.question} The opponent is the scheduled optimizer that tuning "
                f"preferred for that number of steps: {_opponent(found)}. Each optimizer has {study.trials} "
                "trials in ranges of its own and some more beyond an edge, one with a schedule at each "
                f"horizon (at the longest its {study.reused} best of the one before). The [rule of the "
                f"verdicts](docs/results.md#{study.name}) stands in study.json, with every change of it. "
                f"Differences in {study.measure} (below 0 is better) are paired over seeds, as many as stand "
                f"in brackets, with 95 % t-intervals. {progress(study, records)}"
            )
        )
        first, *others = compared(found)
        rows = [first, *(entry for entry in study.entries if entry.scheduled), *others]
        shown = [entry for entry in rows if found.verdicts(entry.name)]
        parts.append(difference_table(found, [entry.name for entry in shown], sized=False))
        parts += [_wrapped(about)] if (about := glossary(shown)) else []
        parts += ["Limitations:", _list(study.caveats)] if study.caveats else []
    paper = f"**What the paper reports.** {PAPER}"
    parts += [_wrapped(paper), *_paper_list()]
    return "\n\n".join(parts) + "\n"


def with_block(text: str, block: str) -> str:
    """Return a page with a block in place of what stands between its markers.

    Args:
        text: Text of the page, with both markers.
        block: Markdown to put between the markers; blank lines around it are dropped.

    Raises:
        RecordError: If the page does not have each marker once, in their order.
    """
    before, begins, rest = text.partition(BEGINS)
    _, ends, after = rest.partition(ENDS)
    if not begins or not ends or BEGINS in rest or ENDS in before + after:
        raise RecordError(
            f"the page must have the markers {BEGINS} and {ENDS} once each, in this order; put them where "
            "the results are to stand"
        )
    return f"{before}{BEGINS}\n{block.strip()}\n{ENDS}{after}"


def without_horizon(study: Study) -> list[Entry]:
    """Return the optimizers whose runs may be stopped anywhere."""
    return [entry for entry in study.entries if not entry.scheduled]


def compared(found: Findings) -> list[Entry]:
    """Return the optimizers without a horizon that have a verdict somewhere."""
    return [entry for entry in without_horizon(found.study) if found.verdicts(entry.name)]


def sentence(found: Findings, entry: Entry) -> str:
    """Return at which horizons an optimizer is ahead, level, behind and undecided, with all differences."""
    verdicts = found.verdicts(entry.name)
    phrases = []
    for word in WORDS:
        these = [verdict for verdict in verdicts.values() if verdict.word == word]
        if these:
            phrases.append(f"{word} at {_joined([_with_difference(verdict) for verdict in these])} steps")
    missing = [f"{horizon:,}" for horizon in found.study.horizons if horizon not in verdicts]
    if missing:
        phrases.append(f"not measured yet at {_joined(missing)} steps")
    return f"**{entry.name}** is {'; '.join(phrases)}."


def _with_difference(verdict: Verdict) -> str:
    n = verdict.difference.n
    seeds = f"{n} seed{'s' if n != 1 else ''}"
    slight = verdict.word in (AHEAD, BEHIND) and verdict.size == "less than"
    margin = ", less than the margin" if slight else ""
    return f"{verdict.horizon:,} ({signed(verdict.difference)}, {seeds}{margin})"


def glossary(entries: Iterable[Entry]) -> str:
    """Say what the optimizers are, of those that have a word about them."""
    known = [f"{entry.name}: {entry.about}" for entry in entries if entry.about]
    return f"{'; '.join(known)}." if known else ""


def _opponent(found: Findings) -> str:
    """Name the envelope: one optimizer, or which one at which horizons."""
    horizons: dict[str, list[str]] = {}
    for horizon, name in found.envelope.items():
        horizons.setdefault(name, []).append(f"{horizon:,}")
    if len(horizons) == 1 and len(found.envelope) == len(found.study.horizons):
        return f"{next(iter(horizons))} at every horizon"
    return _joined([f"{name} at {_joined(steps)} steps" for name, steps in horizons.items()])


def _joined(parts: Sequence[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def _section(found: Findings, records: Records, pictures: Mapping[str, str]) -> list[str]:
    study = found.study
    names = [entry.name for entry in study.entries]
    free = [entry.name for entry in without_horizon(study)]
    parts = [f"## {study.name}", _wrapped(study.question)]
    parts += _picture(study, pictures)
    parts += [
        _wrapped(_setting(study)),
        _wrapped(f"The rule; study.json has every change of it since the first runs. {rule(study)}"),
        _wrapped(f"{progress(study, records)} {kept_apart(study, records)}"),
        _list(sentence(found, entry) for entry in compared(found)) or NOTHING_YET,
        _wrapped(glossary(study.entries)),
        *(["Limitations:", _list(study.caveats)] if study.caveats else []),
        f"### {study.measure.capitalize()} at each horizon",
        "In bold the envelope. Each optimizer is read where its tuning chose.",
        loss_table(found, names),
        f"All read at x, the readout that the optimizer ships; {study.measure}:",
        loss_table(found, names, readout="x"),
    ]
    if study.beside is not None:
        parts += [f"Beside it, deciding nothing: {study.beside}.", beside_table(found, names)]
    parts += [
        "### Difference to the envelope",
        "Below 0 is better.",
        difference_table(found, names),
        "Over all horizons:",
        overall_table(found, free),
        "### Steps to reach",
        _wrapped(STEPS_TO_REACH),
        steps_table(found, free),
        "### Effect of pairing seeds",
        _wrapped(
            "Standard deviation of the difference of two runs with the same seed and with different ones, "
            "and how many times as many seeds would be needed without pairing."
        ),
        pairing_table(found, free),
        "### Chosen settings",
        settings_table(found, records),
        "### Trials and seeds",
        counts_table(found, records),
        *_more_pictures(study, pictures),
        "### Failures",
        failures_list(study, records),
        *(["### Changed after the first runs", _list(study.reasons)] if study.reasons else []),
    ]
    return [part for part in parts if part]


def _setting(study: Study) -> str:
    horizons = _joined([f"{horizon:,}" for horizon in study.horizons])
    return (
        f"Horizons: {horizons} steps, the first {study.warmup_steps} of them warm-up, for all. "
        f"{tuning_rule(study)} "
        f"[records/{study.name}](../records/{study.name}) has the study and all runs."
    )


def progress(study: Study, records: Records) -> str:
    """Say how far the study is."""
    count = len(wanted(study, records))
    if count == 0:
        return "All runs of the study have been made."
    open_ones = [entry.name for entry in study.entries if not tuning(study, entry, records).decided]
    tuned = f" Not tuned yet: {', '.join(open_ones)}." if open_ones else ""
    return f"The study is not finished: at least {count} more runs are to be made, all may change.{tuned}"


def kept_apart(study: Study, records: Records) -> str:
    """Say which runs are kept of optimizers that the study does not have any more, if there are any."""
    names = [entry.name for entry in study.entries]
    counts = Counter(record.entry for record in records.values() if record.entry not in names)
    runs = [f"{count} run{'s' if count > 1 else ''} of {name}" for name, count in sorted(counts.items())]
    return f"Kept in runs.jsonl and not compared: {_joined(runs)}." if runs else ""


def _picture(study: Study, pictures: Mapping[str, str]) -> list[str]:
    shows = f"{study.name}: {study.measure} at every step against runs that were told to end there"
    return [f"![{shows}]({pictures['anytime']})"] if "anytime" in pictures else []


def _more_pictures(study: Study, pictures: Mapping[str, str]) -> list[str]:
    shown = {
        "difference": "difference to the envelope by horizon",
        "steps": "steps to the envelope's loss",
        "learning-rate": "what trials are behind the best one, against the learning rate",
        "settings": "what trials are behind the best one, over learning rate and own setting",
        "readouts": "what readouts are behind the best one, by horizon",
    }
    links = [f"![{study.name}: {what}]({pictures[name]})" for name, what in shown.items() if name in pictures]
    return ["### Figures", *links] if links else []


def _paper_list() -> list[str]:
    return [_list(FIGURES)]


def _wrapped(text: str) -> str:
    return textwrap.fill(text.strip(), _WIDTH, break_long_words=False, break_on_hyphens=False)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(
        textwrap.fill(
            f"* {line}", _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        for line in lines
    )
