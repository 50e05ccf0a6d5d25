"""The results of studies as Markdown, from their records only, byte for byte the same each time."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from amuse_lab.errors import RecordError
from amuse_lab.studies.published import FIGURES, OTHERS, PAPER
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
from amuse_lab.studies.tuning import tuning, wanted
from amuse_lab.studies.verdicts import AHEAD, BEHIND, WORDS, Findings, Verdict, findings, rule

BEGINS = "<!-- results -->"
ENDS = "<!-- /results -->"

NOTHING_YET = "Nothing can be said yet: no seed has runs of both sides."

_WIDTH = 118

Pictures = Mapping[str, str]
"""Path of the picture of the anytime curve by the study's name, relative to the page that shows it."""


def results_page(studies: Iterable[tuple[Study, Records]], pictures: Pictures | None = None) -> str:
    """Return docs/results.md.

    Args:
        studies: Studies with their records, which may be incomplete.
        pictures: The anytime curves, relative to docs.

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
        parts += _section(findings(study, records), records, (pictures or {}).get(study.name))
    parts += ["## What the paper reports", _wrapped(PAPER), *_paper_list()]
    return "\n\n".join(parts) + "\n"


def readme_block(studies: Iterable[tuple[Study, Records]], pictures: Pictures | None = None) -> str:
    """Return what stands between the markers in README.md.

    Args:
        studies: Studies with their records, which may be incomplete.
        pictures: The anytime curves, relative to README.md.
    """
    parts: list[str] = []
    for study, records in studies:
        found = findings(study, records)
        if not _compared(found):
            told = f"**{study.name}.** {study.question} {NOTHING_YET} {_progress(study, records)}"
            parts.append(_wrapped(told))
            continue
        picture = (pictures or {}).get(study.name)
        parts += [_picture(study, picture)] if picture else []
        tuned = [e.name for e in study.entries if e.scheduled and found.reported[e.name].choices]
        opponent = f"the best of {_joined(tuned)}" if len(tuned) > 1 else tuned[0]
        parts.append(
            _wrapped(
                f"**{study.name}.** {study.question} The opponent at each horizon is {opponent}, "
                f"tuned for that number of steps. Every optimizer here got {study.trials} "
                f"trials, those with a schedule at each horizon (at the longest their {study.reused} best of "
                "the one before), and the [rule of the "
                f"verdicts](docs/results.md#{study.name}) stands in study.json, with every change of it. "
                "Differences in "
                f"{study.measure} (below 0 is better) are paired over seeds, with 95 % t-intervals. "
                + _progress(study, records)
            )
        )
        parts.append(answers(found))
    paper = f"**Apart from that, the paper.** {PAPER}"
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


def answers(found: Findings) -> str:
    """Return a list of sentences on the optimizers that have been compared, or a line that there are none."""
    compared = _compared(found)
    return "\n".join(_item(sentence(found, entry)) for entry in compared) if compared else NOTHING_YET


def _compared(found: Findings) -> list[Entry]:
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


def _joined(parts: Sequence[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def _section(found: Findings, records: Records, picture: str | None) -> list[str]:
    study = found.study
    names = [entry.name for entry in study.entries]
    free = [entry.name for entry in without_horizon(study)]
    parts = [f"## {study.name}", _wrapped(study.question)]
    parts += [_picture(study, picture)] if picture else []
    parts += [
        _wrapped(_setting(study)),
        _wrapped(f"The rule; study.json has every change of it since the first runs. {rule(study)}"),
        _wrapped(_progress(study, records)),
        answers(found),
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
        _wrapped(
            "First, how many steps the optimizer needs for the loss that the envelope has at the horizon; "
            "second, how many steps the envelope needs, tuned for just so many, for the loss that the "
            "optimizer has there; third, to first order, the difference in loss as a share of the steps by "
            "the slope of the envelope between the neighbouring horizons, positive where more steps are "
            "needed. One stopping step for all seeds: the first at which their mean is there."
        ),
        steps_table(found, free),
        "### What the pairing of seeds buys",
        _wrapped(
            "Standard deviation of the difference of two runs with the same seed and with different ones, "
            "and how many times as many seeds would be needed without pairing."
        ),
        pairing_table(found, free),
        "### Chosen settings",
        settings_table(found),
        "### Trials and seeds",
        counts_table(found, records),
        "### Failures",
        failures_list(study, records),
    ]
    return [part for part in parts if part]


def budget(study: Study) -> str:
    """Say how the optimizers are tuned, and with which seeds they are reported."""
    first, *others = study.tuning_seeds
    confirmed = (
        f" The {study.confirmed} best are run with seed{'s' if others[1:] else ''} "
        f"{_joined([str(seed) for seed in others])} too, and the best mean is chosen."
        if others
        else ""
    )
    return (
        f"Tuning: {study.trials} trials fixed beforehand for each optimizer, with seed {first}: at each "
        f"horizon for those that are told where to end (at the longest one the {study.reused} best of the "
        "horizon before), once for all horizons otherwise; more where the best learning rate is at an edge."
        f"{confirmed} The readout, that is the weights at which the model is evaluated, is chosen with the "
        f"settings. Reported: {len(study.reporting_seeds)} other seeds, {study.seeds_at_longest} of them at "
        f"{study.longest:,} steps."
    )


def _setting(study: Study) -> str:
    horizons = _joined([f"{horizon:,}" for horizon in study.horizons])
    return (
        f"Horizons: {horizons} steps, the first {study.warmup_steps} of them warm-up, for all. "
        f"{budget(study)} "
        f"[records/{study.name}](../records/{study.name}) has the study and all runs."
    )


def _progress(study: Study, records: Records) -> str:
    count = len(wanted(study, records))
    if count == 0:
        return "All runs of the study have been made."
    open_ones = [entry.name for entry in study.entries if not tuning(study, entry, records).decided]
    tuned = f" Not tuned yet: {', '.join(open_ones)}." if open_ones else ""
    return f"The study is not finished: at least {count} more runs are to be made, all may change.{tuned}"


def _picture(study: Study, path: str) -> str:
    return f"![{study.name}: {study.measure} at every step against runs that were told to end there]({path})"


def _paper_list() -> list[str]:
    return ["\n".join(_item(line) for line in FIGURES), _wrapped(OTHERS)]


def _wrapped(text: str) -> str:
    return textwrap.fill(text.strip(), _WIDTH, break_long_words=False, break_on_hyphens=False)


def _item(text: str) -> str:
    return textwrap.fill(
        f"* {text}", _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
