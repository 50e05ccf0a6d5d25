"""Writes the page of a study from its records."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from amuse_lab.files import replacing
from amuse_lab.studies import tables
from amuse_lab.studies.frontier import STEPS_TO_REACH
from amuse_lab.studies.page import charts, frame, sections
from amuse_lab.studies.results import glossary, kept_apart, progress, without_horizon
from amuse_lab.studies.study import Records, Study
from amuse_lab.studies.verdicts import Findings, findings, rule

_CAPTIONS = {
    "anytime": "Lines: optimizers without a horizon, each with one setting for all steps, mean over its "
    "seeds, beyond the second-longest horizon over those that go on; bands reach from the best to the worst "
    "seed. Hollow marks: where runs ended that were told to. "
    "Dotted: the envelope, the scheduled optimizer that tuning preferred at each horizon; nothing was run "
    "between its marks.",
    "difference": "Below zero is better than the envelope. Bars: 95 % intervals over paired seeds. Grey: the "
    "margin. The vertical axis is linear around zero and logarithmic farther away, unless it is switched.",
    "steps": "Steps that an optimizer needs for the loss that the envelope has at a horizon, divided by that "
    "horizon: below 1 it is faster. Small marks are bounds: never reached, or reached before the first "
    "evaluation.",
    "learning-rate": "Each mark is a trial, at its best readout. All tuned settings differ between trials, "
    "not the learning rate alone.",
    "single-runs": "Training loss: means over stretches of steps that grow with the step, from the first "
    "step on. Marks: evaluations.",
}


def page(study: Study, records: Records, environments: Mapping[str, Any]) -> str:
    """Return the page of a study as HTML; the same text for the same records.

    Args:
        study: Study that the page is about: its question, optimizers, horizons and seeds.
        records: Its records, as far as there are any.
        environments: Environments of the runs by their hashes.
    """
    found = findings(study, records)
    drawn = {chart["id"]: chart for make in charts.CHARTS if (chart := make(found, records))["groups"]}
    drawn = {
        name: chart for name, chart in drawn.items() if any(group["series"] for group in chart["groups"])
    }
    singles = _figure(drawn["single-runs"]) if "single-runs" in drawn else ""
    pictures = "\n".join(_figure(chart) for name, chart in drawn.items() if name != "single-runs")
    names = [entry.name for entry in study.entries]
    free = [entry.name for entry in without_horizon(study)]
    shown = sections.from_markdown
    content = frame.filled(
        "study.html",
        name=escape(study.name),
        question=escape(study.question),
        progress=escape(f"{progress(study, records)} {kept_apart(study, records)}"),
        answer=sections.answer(found, glossary(study.entries)) + sections.caveats(study),
        pictures=pictures or "<p>There is nothing to draw yet.</p>",
        measure=escape(study.measure),
        difference=shown(tables.difference_table(found, names)),
        losses=shown(tables.loss_table(found, names)),
        shipped=shown(tables.loss_table(found, names, readout="x")),
        beside=_beside(found, names),
        overall=shown(tables.overall_table(found, free)),
        steps_to_reach=escape(STEPS_TO_REACH),
        steps=shown(tables.steps_table(found, free)),
        rule=escape(rule(study)),
        changes=sections.changes(study),
        budgets=sections.budgets(study),
        tuned=shown(tables.settings_table(found, records)),
        counts=shown(tables.counts_table(found, records)),
        readouts=shown(tables.readouts_table(found, records)),
        pairing=shown(tables.pairing_table(found, free)),
        setting=sections.setting(study),
        command=sections.command(study),
        runs=sections.runs(study, records) + singles,
        failures=shown(tables.failures_list(study, records)),
        environments=sections.environments(records, environments),
    )
    return frame.document(study.name, content, list(drawn.values()))


def _figure(chart: Mapping[str, Any]) -> str:
    return frame.figure(chart, _CAPTIONS[chart["id"]])


def _beside(found: Findings, names: Sequence[str]) -> str:
    """What is reported beside the measure, if anything is."""
    if found.study.beside is None:
        return ""
    title = f"Beside it, deciding nothing: {escape(found.study.beside)}"
    return sections.details(title, sections.from_markdown(tables.beside_table(found, names)))


def write_page(study: Study, records: Records, environments: Mapping[str, Any], path: Path) -> None:
    """Write the page of a study.

    Args:
        study: Study that the page is about, as for `page`.
        records: Its records, as far as there are any.
        environments: Environments of the runs by their hashes.
        path: The HTML file to write; its folder is made if needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(page(study, records, environments), "utf-8")
