"""The study of the GPU command: sittings that go on from each other, and runs on one model."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from amuse_lab.config import RunConfig
from amuse_lab.studies import measuring
from amuse_lab.studies import records as files
from amuse_lab.studies.compare import outlook
from amuse_lab.studies.study import Record, Request, Study
from amuse_lab.studies.tuning import first_round, trial, wanted
from amuse_lab.studies.verdicts import findings
from amuse_lab.trainer import Trainer
from benchmarks.gpu import anytime, tables
from benchmarks.gpu.part import Part
from benchmarks.gpu.trainers import Bed
from tests.amuse_lab.studies import invented

CPU = torch.device("cpu")


@dataclass
class Timed(Part):
    """A part that always has the same time left."""

    @property
    def left(self) -> float:
        return self.seconds


def part(folder: Path, seconds: float = 600.0) -> Part:
    return Timed(CPU, tiny=True, seconds=seconds, out=folder / "anytime.json")


def sit(part: Part, study: Study, folder: Path) -> dict[str, Record]:
    """A sitting whose runs are a formula: a tenth of a second a step."""
    return anytime.sitting(part, study, folder / "records", folder, lambda _: pytest.fail("it is not run"))


def values(records: dict[str, Record]) -> dict[str, Record]:
    return {key: replace(record, environment="") for key, record in records.items()}


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Runs are made by a formula; returns the list of those that were."""
    made: list[Request] = []

    def measured(study: Study, request: Request, _: Path, *, environment: str, **__: Any) -> Record:
        made.append(request)
        return replace(invented.run(study, request), environment=environment)

    monkeypatch.setattr(measuring, "measure", measured)
    return made


def test_the_study_as_small_as_it_can_be(tmp_path: Path) -> None:
    underway = part(tmp_path)
    anytime.measure(underway)
    content = json.loads((tmp_path / "anytime.json").read_text())
    *runs, last = content["results"]
    assert not any("failure" in each for each in runs)
    assert last["missing_at_least"] == 0
    assert last["runs"] == len(runs)
    assert {(each["entry"], each["horizon"]) for each in content["verdicts"]} >= {
        (name, horizon) for name in ("amuse", "anytime") for horizon in (4, 8)
    }
    assert {each["difference"]["n"] for each in content["verdicts"]} == {2}
    text = tables.LAYOUTS["anytime"](content, content["results"])
    assert f"{last['runs']} runs are done, at least 0 are missing." in text
    assert text.count("| muon-cosine |") == 2


def test_runs_on_one_model_are_those_of_models_of_their_own(tmp_path: Path) -> None:
    """Whatever has been trained on it before: another optimizer, another seed, or a run that failed."""
    study = anytime.tiny(anytime.gpu_anytime(CPU))
    bed = Bed(study.run, CPU)

    def build(config: RunConfig) -> Trainer:
        return bed.trainer(config, config.task.build(seed=config.seed, device=CPU))

    requests = []
    for name in ("amuse", "adamw-cosine", "muon-cosine", "anytime", "normuon-cosine"):
        entry = study.entry(name)
        for point in first_round(study, entry):
            request = trial(study, entry, point, 4)
            requests += [request, replace(request, point=point | {"lr": 1e30}), replace(request, seed=3)]
    on_one = [measuring.measure(study, each, tmp_path / "one", build=build) for each in requests]
    apart = [measuring.measure(study, each, tmp_path / "apart") for each in requests]
    assert [replace(each, seconds=0.0) for each in on_one] == [replace(each, seconds=0.0) for each in apart]
    assert {each.failure is None for each in apart} == {True, False}


def test_a_sitting_begins_what_fits_and_the_next_one_goes_on(tmp_path: Path, formula: list[Request]) -> None:
    study = invented.study()
    first = sit(part(tmp_path, anytime.RESERVE + 30), study, tmp_path)  # 320 steps take 32 seconds
    assert {record.steps for record in first.values()} == {40, 80, 160}
    assert {request.steps for request in wanted(study, first)} >= {320}
    assert files.read(tmp_path / "records") == first
    assert sit(part(tmp_path, anytime.RESERVE), study, tmp_path) == first  # no time, no run
    before = len(formula)
    last = part(tmp_path)
    whole = sit(last, study, tmp_path)
    assert values(whole) == values(invented.records(study))
    assert files.read(tmp_path / "records") == whole
    assert {request.steps for request in formula[before:]} >= {320}
    assert len({(request.key(study), request.steps) for request in formula}) == len(formula)  # each once

    found = findings(study, whole).verdicts("amuse")
    assert {
        each["horizon"]: (each["word"], each["difference"]["mean"]) for each in last.content["verdicts"]
    } == {horizon: (verdict.word, verdict.difference.mean) for horizon, verdict in found.items()}
    assert list(found) == list(study.horizons)
    assert [each["entry"] for each in last.content["overall"]] == ["amuse"]


@pytest.mark.usefixtures("formula")
def test_a_run_that_cannot_be_made_is_left_to_the_next_sitting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, usual = invented.study(), measuring.measure
    broken = first_round(study, study.entry("muon-cosine"))[2]

    def measured(study: Study, request: Request, *given: Any, **named: Any) -> Record:
        if request.point == broken and request.steps == 40:
            raise torch.OutOfMemoryError("no room")
        return usual(study, request, *given, **named)

    monkeypatch.setattr(measuring, "measure", measured)
    underway = part(tmp_path)
    records = sit(underway, study, tmp_path)
    failures = [each["failure"] for each in underway.content["results"] if "failure" in each]
    assert failures == ["OutOfMemoryError: no room"]
    assert any(record.entry == "amuse" and record.seed > 0 for record in records.values())
    monkeypatch.setattr(measuring, "measure", usual)
    assert values(sit(part(tmp_path), study, tmp_path)) == values(invented.records(study))


def test_the_speed_is_that_of_this_environment_where_it_is_known() -> None:
    study = invented.study()
    request = trial(study, study.entry("amuse"), {"lr": 0.01, "lr_rest": 0.01}, 40)
    record = invented.run(study, request)
    records = {str(i): replace(record, seconds=40.0 * i, environment="there") for i in (1, 2, 9)}
    assert anytime.seconds_per_step({}, "here") == 0.0
    assert anytime.seconds_per_step(records, "here") == 2.0
    records["none"] = replace(record, steps=0, environment="here", failure="at once")
    assert anytime.seconds_per_step(records, "here") == 2.0
    records["own"] = replace(record, seconds=120.0, environment="here")
    assert anytime.seconds_per_step(records, "here") == 3.0


def test_the_size_of_the_study() -> None:
    study = anytime.gpu_anytime(torch.device("cuda"))
    left = outlook(study, {})
    assert 120_000 < sum(request.steps for request in left) < 140_000
    first = [request for request in left if request.entry == "amuse" and request.seed in (0, 1, 2, 3)]
    assert sum(request.steps for request in first) < 100_000 / 5
