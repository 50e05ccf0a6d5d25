"""Writes the page of a study from its records."""

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from amuse_lab.files import replacing
from amuse_lab.studies.page import charts, tables
from amuse_lab.studies.study import Records, Study
from amuse_lab.studies.verdicts import findings, rule

_CAPTIONS = {
    "anytime": "Lines: optimizers without a horizon, each one setting for all steps, mean over its seeds; bands "
    "reach from the best to the worst seed. Hollow marks: where runs that were told to end there ended. Black: "
    "the envelope, the scheduled optimizer that tuning preferred at each horizon.",
    "difference": "Below zero is better than the envelope. Bars: 95 % intervals over paired seeds. Grey: the "
    "margin. The vertical axis is linear around zero and logarithmic farther away, unless it is switched.",
    "learning-rate": "Each mark is a trial, at its best readout. All tuned settings differ between trials, not "
    "the learning rate alone.",
    "single-runs": "Training loss: means over stretches of steps that grow with the step, from the first step "
    "on. Marks: evaluations.",
}


def page(study: Study, records: Records, environments: Mapping[str, Any]) -> str:
    """Return the page of a study as HTML; the same text for the same records.

    Args:
        study: The study.
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
    text = json.dumps(list(drawn.values()), separators=(",", ":"), ensure_ascii=False)
    return Template(_file("template.html")).substitute(
        name=escape(study.name),
        question=escape(study.question),
        progress=tables.progress(study, records),
        answer=tables.answer(found),
        pictures=pictures or "<p>There is nothing to draw yet.</p>",
        table=tables.results(found),
        rule=escape(rule(study)),
        how=tables.budgets(study) + tables.details("What tuning chose", tables.tuned(found)),
        setting=tables.setting(study),
        runs=_command(study) + tables.runs(study, records) + singles,
        failures=tables.failures(study, records),
        environments=tables.environments(records, environments),
        charts=text.replace("</", "<\\/"),
        style=_file("page.css"),
        script=_file("page.js"),
        plot_style=_file("uPlot.min.css"),
        plot_script=_file("uPlot.min.js"),
        licence=escape(_file("uPlot.LICENSE")),
    )


def write_page(study: Study, records: Records, environments: Mapping[str, Any], path: Path) -> None:
    """Write the page of a study.

    Args:
        study: The study.
        records: Its records, as far as there are any.
        environments: Environments of the runs by their hashes.
        path: The HTML file to write; its folder is made if needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(page(study, records, environments), "utf-8")


def _file(name: str) -> str:
    return (files("amuse_lab.studies.page") / name).read_text("utf-8")


def _command(study: Study) -> str:
    return (
        f"<p>This command makes all these runs again; every number of this page follows from them:</p>"
        f"<pre>amuse-lab compare {escape(study.name)} --records FOLDER</pre>"
        f"<p class='note'>It goes on where FOLDER has some of them already. A run is recognised by its key, a "
        f"hash of its settings: take its line out of <code>runs.jsonl</code> and it is made anew, as the same "
        f"key.</p>"
    )


def _figure(chart: Mapping[str, Any]) -> str:
    """The place of a chart, with its switches."""
    names = {"x": chart["labels"]["x"], "y": "loss" if chart["log"]["y"] == "log" else "difference"}
    switches = [
        f'<label><input type="checkbox" data-axis="{side}"'
        f"{' checked' if (side, kind) != ('y', 'log') else ''}> logarithmic {names[side]}</label>"
        for side, kind in chart["log"].items()
    ]
    if len(chart["groups"]) > 1:
        options = "".join(f"<option>{escape(group['name'])}</option>" for group in chart["groups"])
        switches.insert(0, f"<label>show <select>{options}</select></label>")
    return (
        f'<section class="chart" id="{chart["id"]}"><h3>{escape(chart["title"])}</h3>\n'
        f'<div class="switches">{"".join(switches)}</div>\n<div class="plot"></div>\n'
        f'<p class="note">{_CAPTIONS[chart["id"]]}</p></section>'
    )
