"""The verdicts of the claims, on invented runs; and the committed records."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from amuse_lab.errors import RecordError
from amuse_lab.landscape import claims, experiments
from amuse_lab.landscape.claims import CLAIMS, cells, verdict
from amuse_lab.landscape.claims_page import claims_page
from amuse_lab.landscape.recorded import Recorded, from_json, to_json
from tests.amuse_lab.landscape.runs import recorded

ALL = [recorded(name, setting, seed) for setting, name in claims.runs() for seed in (1, 2, 3)]
RECORDS = Path(__file__).parents[3] / "records" / "landscape"


@pytest.mark.parametrize("number", range(4))
def test_claims_that_hold_everywhere_are_supported(number: int) -> None:
    claim = CLAIMS[number]
    found = list(cells(claim, ALL))
    assert len(found) == 2 * 3 * len(claim.effects)
    assert {cell.word for cell in found} == {"supported"}
    assert verdict(claim, ALL) == "supported"


def test_the_effects_are_what_they_say() -> None:
    for number, expected in enumerate((0.1, 0.5, 0.4, 1.0)):
        first = next(cells(CLAIMS[number], [recorded(seed=0)]))
        value = first.found.mean
        if number == 0:  # sqrt(1 - r_dom^2) of shares .1 and .5
            assert value == pytest.approx(0.99**0.5 - 0.75**0.5)
        elif number == 1:  # against sqrt(2 / 1000)
            assert value == pytest.approx(0.1 - 0.002**0.5)
        else:
            assert value == pytest.approx(expected)
    _, undone = cells(CLAIMS[1], [recorded(seed=0)])
    assert undone.found.mean == pytest.approx(0.6931472)


def changed(records: list[Recorded], name: str, **how: float) -> list[Recorded]:
    return [
        recorded(each.name, each.setting, each.seed, **how) if each.name == name else each for each in records
    ]


def test_a_single_cell_against_it_is_enough() -> None:
    assert verdict(CLAIMS[0], changed(ALL, "muon", update=0.9)) == "not supported"
    assert verdict(CLAIMS[3], changed(ALL, "muon", update=0.9)) == "supported"  # it is not about muon


def test_what_is_not_there_or_failed_or_disagrees_is_unclear() -> None:
    assert verdict(CLAIMS[0], []) == "unclear"
    assert verdict(CLAIMS[0], [each for each in ALL if each.setting == "text"]) == "unclear"
    assert verdict(CLAIMS[0], [each for each in ALL if each.seed == 1]) == "unclear"
    assert (
        verdict(CLAIMS[0], [replace(each, failure="nan") if each.seed == 1 else each for each in ALL])
        == "unclear"
    )
    apart = [recorded(each.name, each.setting, each.seed, update=0.3 * each.seed) for each in ALL]
    assert verdict(CLAIMS[0], apart) == "unclear"


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    experiments.write(tmp_path, ALL[::-1])
    assert sorted(map(repr, experiments.read(tmp_path))) == sorted(map(repr, ALL))
    before = (tmp_path / experiments.RUNS).read_bytes()
    experiments.write(tmp_path, ALL)
    assert (tmp_path / experiments.RUNS).read_bytes() == before
    assert from_json(json.loads(json.dumps(to_json(ALL[0])))) == ALL[0]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    experiments.write(tmp_path, ALL[:1])
    with (tmp_path / experiments.RUNS).open("a") as file:
        file.write('{"name": "amuse", "wrong": 1}\n')
    with pytest.raises(RecordError, match=r"runs.jsonl, line 2: not the record of a run"):
        experiments.read(tmp_path)


def test_all_runs_are_missing_at_first_one_seed_after_the_other() -> None:
    wanted = experiments.missing([])
    assert len(wanted) == 36
    assert [config.seed for _, _, config in wanted] == [1] * 12 + [2] * 12 + [3] * 12


def test_the_committed_runs_are_those_that_were_decided_on() -> None:
    decided = json.loads((RECORDS / experiments.CLAIMS).read_text("utf-8"))
    assert decided == json.loads(json.dumps(experiments.definition()))
    records = experiments.read(RECORDS)
    assert experiments.missing(records) == []
    assert (RECORDS / "report.html").read_text("utf-8") == claims_page(
        records, experiments.read_environments(RECORDS)
    )
    page = (RECORDS.parents[1] / "docs" / "landscape.md").read_text("utf-8")
    for number, claim in enumerate(CLAIMS, start=1):
        assert f"| {number} | {claim.text} | {verdict(claim, records)} |" in page
    assert {each.environment for each in records} == experiments.read_environments(RECORDS).keys()
