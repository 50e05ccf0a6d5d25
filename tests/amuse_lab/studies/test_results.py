"""The results in Markdown: from records only, the same each time, with all that a verdict needs."""

import random
import re
from dataclasses import replace

import pytest

from amuse_lab.errors import RecordError
from amuse_lab.studies.page.page import page as page_of
from amuse_lab.studies.results import BEGINS, ENDS, readme_block, results_page, sentence, with_block
from amuse_lab.studies.statistics import interval
from amuse_lab.studies.study import Record, Study
from amuse_lab.studies.tables import signed
from amuse_lab.studies.tuning import wanted
from amuse_lab.studies.verdicts import findings, rule
from tests.amuse_lab.studies import invented

Found = dict[str, Record]


@pytest.fixture(scope="module")
def study() -> Study:
    return invented.study()


@pytest.fixture(scope="module")
def records(study: Study) -> Found:
    return invented.records(study, ahead=0.02)


def row(page: str, heading: str, name: str) -> list[str]:
    """The cells of an optimizer in the first table below a heading."""
    below = page.split(heading, 1)[1]
    line = next(line for line in below.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def test_the_order_and_the_times_of_records_change_no_byte(study: Study, records: Found) -> None:
    items = list(records.items())
    random.Random(3).shuffle(items)
    again = {key: replace(record, seconds=record.seconds * 2, environment="other") for key, record in items}
    assert list(again) != list(records)
    assert results_page([(study, again)]) == results_page([(study, records)])
    assert readme_block([(study, again)]) == readme_block([(study, records)])


def test_the_page_says_what_the_findings_are(study: Study, records: Found) -> None:
    page = results_page([(study, records)])
    assert unwrapped(rule(study)) in unwrapped(page)
    verdicts = findings(study, records).verdicts("amuse")
    cells = row(page, "### Difference to the envelope", "amuse")
    for cell, verdict in zip(cells, verdicts.values(), strict=True):
        found = verdict.difference
        assert cell.startswith(f"{found.mean:+.4f} ± {found.half:.4f} ({found.n})<br>**{verdict.word}**")
    assert row(page, "### Difference to the envelope", "muon-cosine") == ["envelope"] * 4
    losses = row(page, "### Loss at each horizon", "muon-cosine")
    assert losses[0].startswith(f"**{verdicts[40].other.mean:.4f} ±")
    assert [re.findall(r"\((\d)\)", cell) for cell in losses] == [["4"], ["4"], ["4"], ["3"]]
    trials = [record for record in records.values() if record.entry == "amuse" and record.seed in (0, 100)]
    counts = row(page, "### Trials and seeds", "amuse")
    assert counts == [str(len(trials)), f"{sum(r.steps for r in trials):,}", "4 / 4 / 4 / 3"]
    assert "No run failed." in page
    assert "All runs of the study have been made." in page


def test_the_chosen_settings_stand_there_by_horizon(study: Study, records: Found) -> None:
    page = results_page([(study, records)]).split("### Chosen settings")[1].split("###")[0]
    assert page.count("| muon-cosine |") == len(study.horizons)
    assert page.count("| amuse |") == 1
    choice = findings(study, records).reported["amuse"].choices[320]
    assert f"lr {choice.point['lr']:g}, lr_rest {choice.point['lr_rest']:g} | power 10 |" in page


def test_what_to_hold_against_it_stands_beside_the_verdicts(study: Study, records: Found) -> None:
    told = replace(study, caveats=("One text alone.",), reasons=("2026-01-02, after 3 runs. The margin.",))
    gone = replace(next(iter(records.values())), entry="earlier", key="0")
    known = {**records, "0": gone}
    page, block = results_page([(told, known)]), readme_block([(told, known)])
    for text, verdicts in ((page, "* **amuse** is"), (block, "| amuse |")):
        assert text.index(verdicts) < text.index("Limitations:\n\n* One text alone.")
    assert "### Changed after the first runs\n\n* 2026-01-02, after 3 runs. The margin." in page
    assert "Kept in runs.jsonl and not compared: 1 run of earlier." in unwrapped(page)
    assert "Limitations" not in results_page([(study, records)])
    html = page_of(told, known, {})
    assert "<li>One text alone.</li>" in html
    assert "<summary>Changed after the first runs</summary>" in html


def test_failures_stand_there_with_their_reasons(study: Study, records: Found) -> None:
    broken = dict(records)
    (key,) = (r.key for r in records.values() if r.entry == "amuse" and r.seed == 2)
    broken[key] = replace(records[key], steps=7, readings={}, failure="the loss is nan | at step 8")
    page = results_page([(study, broken)])
    assert "| amuse | reported, seed 2 |" in page
    assert "the loss is nan \\| at step 8" in page
    assert row(page, "### Loss at each horizon", "amuse")[0] == "n/a (4)"
    assert row(page, "### Difference to the envelope", "amuse")[0] == "n/a (4)<br>**behind**"


@pytest.mark.parametrize(("ahead", "word"), [(0.02, "ahead"), (-0.02, "behind")])
def test_the_sentence_names_every_horizon_once(study: Study, ahead: float, word: str) -> None:
    found = findings(study, invented.records(study, ahead=ahead))
    text = sentence(found, study.entry("amuse"))
    assert text.startswith(f"**amuse** is {word} at 40 (")
    assert all(text.count(f"{horizon} (") == 1 for horizon in study.horizons)
    assert text.count("4 seeds") == 3
    assert text.count("3 seeds") == 1
    assert "margin" not in text


def test_a_slight_difference_is_called_slight(study: Study) -> None:
    wide = replace(study, margin=0.5)
    text = sentence(findings(wide, invented.records(wide, ahead=0.02)), wide.entry("amuse"))
    assert text.count("less than the margin") == 4


def test_partial_records_make_a_page_that_says_so(study: Study) -> None:
    found: Found = {}
    pages = set()
    while missing := wanted(study, found):
        pages.add(page := results_page([(study, found)]))
        block = readme_block([(study, found)])
        for text in (page, block):
            assert f"at least {len(missing)} more runs" in unwrapped(text)
            assert "nan" not in text.lower()
            assert "inf" not in text
            assert "-0.0000" not in text
        for request in missing[:9]:
            found[request.key(study)] = invented.run(study, request)
    assert len(pages) > 3
    empty = results_page([(study, {})])
    assert "Nothing can be said yet" in unwrapped(empty)
    assert "Nothing is tuned yet." in empty


def test_a_difference_that_rounds_to_zero_has_no_minus() -> None:
    assert signed(interval([-0.00002, -0.00001])) == "+0.0000 ± 0.0001"
    assert signed(interval([-0.0002])) == "-0.0002"


def test_what_stands_beside_is_shown(study: Study, records: Found) -> None:
    assert "deciding nothing" not in results_page([(study, records)])
    accurate = invented.accurate(records)
    page = results_page([(replace(study, beside="accuracy"), accurate)])
    cells = row(page, "Beside it, deciding nothing: accuracy.", "amuse")
    assert cells == ["0.8750 ± 0.0000 (4)"] * 3 + ["0.8750 ± 0.0000 (3)"]


def test_pictures_stand_first_and_the_paper_apart(study: Study, records: Found) -> None:
    block = readme_block([(study, records)], {"invented": {"anytime": "docs/invented.svg", "steps": "no"}})
    assert "{" not in block
    assert f"Each optimizer has {study.trials} trials" in unwrapped(block)
    assert "number of steps: muon-cosine at every horizon." in unwrapped(block)
    assert block.startswith("![invented")
    assert "](docs/invented.svg)" in block.splitlines()[0]
    assert all("**ahead**" in cell for cell in row(block, "Differences in loss", "amuse"))
    assert block.index("| amuse |") < block.index("**What the paper reports.**")
    assert "none of it was measured here" in unwrapped(block)
    assert "](no)" not in block
    page = results_page([(study, records)], {"invented": {"anytime": "a.png", "readouts": "r.png"}})
    assert page.index("](a.png)") < page.index("### Figures") < page.index("](r.png)")
    before, paper = page.split("## What the paper reports")
    assert "1.51" in unwrapped(paper)
    assert "2605.22432" not in before


def test_the_block_takes_the_place_of_the_old_one() -> None:
    text = f"# Title\n\n{BEGINS}\nold\n{ENDS}\n\nmore\n"
    once = with_block(text, "new\n")
    assert once == f"# Title\n\n{BEGINS}\nnew\n{ENDS}\n\nmore\n"
    assert with_block(once, "new\n") == once


@pytest.mark.parametrize(
    "text", ["", f"{BEGINS} no end", f"{ENDS} {BEGINS}", f"{BEGINS}{BEGINS}{ENDS}", f"{BEGINS}{ENDS}{ENDS}"]
)
def test_a_page_without_both_markers_is_refused(text: str) -> None:
    with pytest.raises(RecordError, match="the page must have the markers"):
        with_block(text, "new")
