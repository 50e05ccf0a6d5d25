import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amuse_lab.studies.page import page as pages
from amuse_lab.studies.results import sentence
from amuse_lab.studies.study import Record, Study
from amuse_lab.studies.verdicts import findings
from tests.amuse_lab.studies import invented
from tests.amuse_lab.studies.browser import CHROMIUM, Browser, browser

STUDY = invented.study()
RECORDS = invented.records(STUDY, ahead=0.01)
ENVIRONMENTS = {"invented": invented.ENVIRONMENT}
CHARTS = ["anytime", "difference", "steps", "learning-rate", "single-runs"]


class Structure(HTMLParser):
    """What a page consists of."""

    VOID = ("meta", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.scripts: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)
        self.words += data

    def all(self, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for _, attributes in self.tags if attribute in attributes]


@cache
def whole() -> str:
    return pages.page(STUDY, RECORDS, ENVIRONMENTS)


def charts(text: str) -> dict[str, Any]:
    return {chart["id"]: chart for chart in json.loads(Structure(text).scripts[0])}


def test_the_page_has_what_a_sceptic_wants_in_this_order() -> None:
    structure = Structure(whole())
    assert structure.open == []
    sections = [
        *("Answer", "Pictures", "Loss against steps", "Difference to the envelope"),
        *("Steps to the envelope's loss", "Sensitivity to the learning rate", "Table", "How it was decided"),
        *("What ran", "Runs", "A single run", "Failures", "Environments"),
    ]
    assert structure.headings == sections
    assert STUDY.question in structure.words
    found = findings(STUDY, RECORDS)
    assert sentence(found, STUDY.entry("amuse")).replace("*", "") in structure.words
    assert "amuse-lab compare invented --records FOLDER" in structure.words
    assert '"torch": "invented"' in structure.words
    for key, run in RECORDS.items():
        assert key in structure.words
        assert f"{run.point['lr']:g}" in structure.words


def test_every_chart_has_a_place_switches_and_a_caption() -> None:
    structure = Structure(whole())
    assert list(charts(whole())) == CHARTS
    names = structure.all("id")
    assert len(set(names)) == len(names)
    assert set(CHARTS) < set(names)
    boxes = [attributes for tag, attributes in structure.tags if tag == "input"]
    assert [box["type"] for box in boxes] == ["checkbox"] * 10
    assert [box["data-axis"] for box in boxes] == ["x", "y"] * 5
    assert {link.removeprefix("#") for link in structure.all("href")} <= set(names)


def test_charts_show_the_records() -> None:
    (amuse,) = (each for each in charts(whole())["anytime"]["groups"][0]["series"] if each["name"] == "amuse")
    reported = [run for run in RECORDS.values() if run.entry == "amuse" and run.seed in STUDY.seeds(160)]
    values = [run.readings[160]["power 10"]["loss"] for run in reported]
    place = amuse["x"].index(160)
    assert amuse["y"][place] == pytest.approx(np.mean(values), rel=1e-4)
    assert amuse["low"][place] == pytest.approx(min(values), rel=1e-4)
    assert amuse["high"][place] == pytest.approx(max(values), rel=1e-4)
    singles = charts(whole())["single-runs"]["groups"]
    assert len(singles) == sum(run.seed not in STUDY.tuning_seeds for run in RECORDS.values())
    assert {group["label"] for group in singles} == {"loss (nats)"}
    key = re.search(r"\((\w+)\): loss$", singles[-1]["name"])
    assert key is not None
    training, validation = singles[-1]["series"]
    assert list(zip(training["x"], training["y"], strict=True)) == [
        (step, pytest.approx(loss, rel=1e-4)) for step, loss in RECORDS[key[1]].training
    ]
    assert validation["x"] == list(RECORDS[key[1]].readings)


def test_accuracy_has_an_axis_of_its_own() -> None:
    accurate = invented.accurate(RECORDS)
    groups = charts(pages.page(replace(STUDY, beside="accuracy"), accurate, {}))["single-runs"]["groups"]
    losses, accuracies = groups[0::2], groups[1::2]
    assert {group["label"] for group in losses} == {"loss (nats)"}
    assert {group["label"] for group in accuracies} == {"accuracy"}
    assert all(
        [len(group["series"]) for group in pair] == [2, 1] for pair in zip(losses, accuracies, strict=True)
    )
    assert {value for group in accuracies for each in group["series"] for value in each["y"]} == {0.875}


def test_readouts_have_a_table() -> None:
    study = STUDY
    found = findings(study, RECORDS).reported["amuse"]
    assert found.choices[320].readout == "power 10"
    (record,) = (
        run
        for run in RECORDS.values()
        if run.entry == "amuse" and run.point == found.choices[320].point and run.seed == 0
    )
    text = re.sub(r"<[^>]+>", " ", whole().partition("Readouts:")[2].partition("</table>")[0])
    for readout in ("x", "y", "power 10"):
        behind = [
            round(1000 * (record.value(h, readout, "loss") - record.value(h, "power 10", "loss")))
            for h in study.horizons
        ]
        assert " ".join(["amuse,", *readout.split(), *map(str, behind)]) in " ".join(text.split())


def test_nothing_is_loaded_from_elsewhere() -> None:
    structure = Structure(whole())
    assert structure.all("src") == []
    assert not any("http" in link for link in structure.all("href"))
    assert not re.search(r"url\(|@import|<link|<img|<iframe", whole())
    assert not re.search(
        r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|importScripts|sendBeacon)\b", whole()
    )
    assert "default-src 'none'" in structure.all("content")[-1]
    assert "Copyright (c) 2022 Leon Sorokin" in structure.words


def test_the_same_records_in_any_order_make_the_same_bytes(tmp_path: Path) -> None:
    for name, records in (("one", RECORDS), ("two", dict(reversed(RECORDS.items())))):
        pages.write_page(STUDY, records, ENVIRONMENTS, tmp_path / name / "page.html")
    first = (tmp_path / "one" / "page.html").read_bytes()
    assert first == (tmp_path / "two" / "page.html").read_bytes()
    assert first.decode() == whole()


def test_a_study_of_a_hundred_runs_stays_below_500_kilobytes() -> None:
    study = replace(STUDY, trials=12, reporting_seeds=tuple(range(1, 15)), seeds_at_longest=12)
    records = invented.records(study)
    long = tuple((step, 1.6 + 3 / (step + 1.234567) ** 0.4) for step in range(1, 2001))
    records = {key: replace(run, training=long) for key, run in records.items()}
    assert len(records) >= 100
    text = pages.page(study, records, ENVIRONMENTS)
    assert len(text.encode()) <= 500_000
    longest = max(
        len(series["x"])
        for chart in charts(text).values()
        for group in chart["groups"]
        for series in group["series"]
    )
    assert longest == 300


def test_text_of_records_is_no_html() -> None:
    evil = "</script><b>&'\""
    entries = tuple(replace(entry, name=entry.name + evil) for entry in STUDY.entries)
    study = replace(STUDY, question=evil, entries=entries)
    records = {
        key: replace(run, entry=run.entry + evil, environment=evil, failure=evil if run.seed == 3 else None)
        for key, run in RECORDS.items()
    }
    keyed = {run.key: run for run in records.values()}
    structure = Structure(pages.page(study, keyed, {evil: {evil: evil}}))
    assert structure.open == []
    assert not [tag for tag, _ in structure.tags if tag == "b"]


@pytest.mark.parametrize(
    ("kept", "drawn"),
    [
        (lambda run: run is None, []),
        (lambda run: run.seed == 0 and run.entry == "amuse", ["learning-rate"]),
        (lambda run: run.entry == "muon-cosine", ["anytime", "learning-rate", "single-runs"]),
    ],
    ids=["nothing", "trials", "one optimizer"],
)
def test_an_unfinished_study_has_a_page(kept: Callable[[Record], bool], drawn: list[str]) -> None:
    text = pages.page(STUDY, {key: run for key, run in RECORDS.items() if kept(run)}, ENVIRONMENTS)
    assert list(charts(text)) == drawn
    assert "The study is not finished" in text
    assert "Nothing can be said yet" in text


def opened(study: Study, records: dict[str, Record], folder: Path) -> Path:
    pages.write_page(study, records, ENVIRONMENTS, folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


IN_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium on this machine (Debian: apt-get install chromium); its twins in the gate are "
    "test_every_chart_has_a_place_switches_and_a_caption and test_nothing_is_loaded_from_elsewhere",
)

INK = """(id => {
  const canvas = document.querySelector(`#${id} canvas`);
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const colours = new Set();
  for (let n = 0; n < pixels.length; n += 4)
    if (pixels[n + 3] > 200) colours.add((pixels[n] << 16) + (pixels[n + 1] << 8) + pixels[n + 2]);
  return [...colours];
})"""


@pytest.mark.slow
@IN_CHROMIUM
@pytest.mark.parametrize("width", [360, 1200])
def test_figures_are_drawn_at_any_width_without_complaints(
    width: int, chromium: Browser, tmp_path: Path
) -> None:
    path = opened(STUDY, RECORDS, tmp_path)
    chromium.open(path, width=width)
    for chart in CHARTS[:4]:
        colours = chromium.value(f"{INK}('{chart}')")
        assert chart == "learning-rate" or 0xD55E00 in colours  # the first optimizer without a horizon
        assert len(colours) > 10
    assert chromium.value("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert chromium.value("document.documentElement.clientWidth") in (width, width - 15)  # a scroll bar
    assert chromium.value("performance.getEntriesByType('resource').length") == 0
    assert chromium.requests == [path.as_uri()]
    assert chromium.complaints == []


@pytest.mark.slow
@IN_CHROMIUM
def test_the_page_is_used_without_a_mouse(chromium: Browser, tmp_path: Path) -> None:
    chromium.open(opened(STUDY, RECORDS, tmp_path), width=800)
    reach = "document.activeElement.matches('%s')"
    picture = "document.querySelector('#anytime canvas').toDataURL()"

    def tab_to(what: str) -> None:
        for _ in range(60):
            if chromium.value(reach % what):
                return
            chromium.press("Tab", 9)
        raise AssertionError(f"{what} is not reached with Tab")

    before = chromium.value(picture)
    tab_to("#anytime input[data-axis=y]")
    chromium.press(" ", 32, " ")
    assert chromium.value("document.activeElement.checked") is True
    logarithmic = chromium.value(picture)
    assert logarithmic != before
    chromium.press(" ", 32, " ")
    assert chromium.value(picture) == before
    tab_to("#anytime .u-over")
    for _ in range(3):
        chromium.press("ArrowRight", 39)
    values = "[...document.querySelectorAll('#anytime .u-value')].map((cell) => cell.textContent)"
    step, *rest = chromium.value(values)
    chart = charts(whole())["anytime"]["groups"][0]["series"]
    steps = sorted({x for series in chart for x in series["x"]})
    assert float(step) == steps[2]
    assert rest[0].startswith(f"{chart[0]['y'][chart[0]['x'].index(steps[2])]:.5g} (")
    tab_to("#anytime .u-series th")
    chromium.press("Enter", 13, "\r")
    assert chromium.value("document.activeElement.closest('.u-series').classList.contains('u-off')") is True
    assert chromium.complaints == []
