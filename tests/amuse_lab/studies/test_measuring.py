import itertools
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError, RecordError
from amuse_lab.parallel import ALONE
from amuse_lab.studies.measuring import measure
from amuse_lab.studies.records import STUDY as STUDY_FILE
from amuse_lab.studies.records import environment_hash, read, record_from_json, record_to_json, write
from amuse_lab.studies.store import Store, open_storage
from amuse_lab.studies.study import Request, Study
from amuse_lab.studies.tuning import first_round, trial
from amuse_lab.trainer import Trainer
from tests.amuse_lab.studies import invented, small

STUDY = small.study()


def request(name: str, steps: int) -> Request:
    entry = STUDY.entry(name)
    return trial(STUDY, entry, first_round(STUDY, entry)[0], steps)


def test_a_run_is_the_trainers_with_its_losses_and_readings(tmp_path: Path) -> None:
    wanted = request("amuse", 16)
    record = measure(STUDY, wanted, tmp_path)
    trainer = Trainer.build(wanted.config(STUDY), ALONE, torch.device("cpu"))
    losses = []
    for step in range(1, 17):
        trainer.advance(look=False)
        losses.append(trainer.take_losses())
        if step in STUDY.horizons:
            assert record.readings[step]["x"]["loss"] == pytest.approx(
                trainer.evaluate()[0]["loss"], rel=1e-5
            )
    assert list(record.readings) == [4, 8, 16]
    assert record.steps == 16
    assert [step for step, _ in record.training] == list(range(1, 17))
    assert [loss for _, loss in record.training] == pytest.approx(losses, rel=1e-4)
    assert record.satisfies(wanted, STUDY)


def test_reported_runs_may_be_judged_on_data_that_no_trial_has_seen(tmp_path: Path) -> None:
    other = replace(STUDY.run.task, eval_left_out=4)
    judging = replace(STUDY, judged=other)
    chosen = request("amuse", 16)
    reported = replace(chosen, reported=True)
    assert [each.key(judging) for each in (chosen, reported)] == [chosen.key(STUDY), reported.key(STUDY)]

    def losses(study: Study, wanted: Request) -> dict[int, float]:
        readings = measure(study, wanted, tmp_path).readings
        return {step: readings[step]["x"]["loss"] for step in study.horizons}

    assert losses(judging, chosen) == losses(STUDY, chosen) == losses(STUDY, reported)
    everywhere = replace(STUDY, run=replace(STUDY.run, task=other))
    assert losses(judging, reported) == losses(everywhere, reported)
    assert losses(judging, reported) != losses(STUDY, reported)
    with pytest.raises(ConfigError, match=r"^judged must be the task of run but for \['eval_left_out', "):
        replace(STUDY, judged=replace(STUDY.run.task, batch=4))


def as_on_a_gpu(config: RunConfig) -> Trainer:
    """A trainer that looks at its losses when it is asked to, and not in every step."""
    trainer = Trainer.build(config, ALONE, torch.device("cpu"))
    trainer._always_looks = False
    return trainer


def test_a_run_whose_losses_are_seen_late_has_the_same_record(tmp_path: Path) -> None:
    late = measure(STUDY, request("amuse", 16), tmp_path, build=as_on_a_gpu)
    assert replace(late, seconds=0.0) == replace(measure(STUDY, request("amuse", 16), tmp_path), seconds=0.0)


def interrupted(study: Study, wanted: Request, folder: Path, *, after: int) -> None:
    """Begin a run and send SIGTERM after a step."""
    steps = itertools.count(1)

    def alive() -> None:
        if next(steps) == after:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        measure(study, wanted, folder, alive=alive)


@pytest.mark.parametrize("name", ["amuse", "muon-cosine"])
@pytest.mark.parametrize("kept", [(5.0, 10.0), (5.0, 20.0)])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(
    tmp_path: Path, kept: tuple[float, ...], name: str
) -> None:
    study = replace(STUDY, kept=kept)  # the average with kappa 10 is kept, or rebuilt from snapshots
    wanted = request(name, 16)
    whole = measure(study, wanted, tmp_path / "whole")
    interrupted(study, wanted, tmp_path / "parts", after=5)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [whole.key]
    steps: list[None] = []
    parts = measure(study, wanted, tmp_path / "parts", alive=lambda: steps.append(None))
    assert len(steps) == 11
    assert replace(parts, seconds=0.0) == replace(whole, seconds=0.0)
    assert list((tmp_path / "parts").iterdir()) == []  # nobody needs the checkpoint any more


def test_a_signal_in_the_last_step_is_heard_and_the_run_is_not_lost(tmp_path: Path) -> None:
    wanted = request("amuse", 16)
    interrupted(STUDY, wanted, tmp_path, after=16)
    record = measure(STUDY, wanted, tmp_path, alive=lambda: pytest.fail("there is no step left"))
    whole = measure(STUDY, wanted, tmp_path / "whole")
    assert replace(record, seconds=0.0) == replace(whole, seconds=0.0)


@pytest.mark.parametrize("before", [("x", "power 5"), ("x", "power 10")])
def test_a_checkpoint_without_what_is_wanted_is_not_gone_on_from(
    tmp_path: Path, before: tuple[str, ...]
) -> None:
    """Without the average with kappa 10, or without an evaluation at y."""
    wanted = replace(request("amuse", 16), readouts=("x", "y", "power 10"))
    interrupted(STUDY, replace(wanted, readouts=before), tmp_path, after=5)
    found = measure(STUDY, wanted, tmp_path)
    whole = measure(STUDY, wanted, tmp_path / "whole")
    assert replace(found, seconds=0.0) == replace(whole, seconds=0.0)
    assert found.satisfies(wanted, STUDY)


@pytest.mark.parametrize("late", [False, True])
def test_a_run_that_diverges_says_so_and_keeps_what_it_found(tmp_path: Path, late: bool) -> None:
    entry = STUDY.entry("muon-cosine")
    wanted = trial(STUDY, entry, {"lr": 1e30}, 16)
    record = measure(STUDY, wanted, tmp_path, **({"build": as_on_a_gpu} if late else {}))
    assert record.failure is not None
    assert "training loss of step" in record.failure
    assert record.steps == 16 if late else record.steps < 16
    assert record.readings == {}
    assert record.satisfies(wanted, STUDY)


def test_records_are_written_and_read_as_they_were(tmp_path: Path) -> None:
    study = invented.study()
    records = invented.records(study)
    name = environment_hash(invented.ENVIRONMENT)
    records = {key: replace(record, environment=name) for key, record in records.items()}
    write(tmp_path, study, records, {name: invented.ENVIRONMENT, "unused": {}})
    assert read(tmp_path) == records
    assert [record_from_json(record_to_json(record)) for record in records.values()] == [*records.values()]
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    said = replace(study.entries[0], about="in other words")
    other = replace(study, margin=0.5, caveats=("One text alone.",), entries=(said, *study.entries[1:]))
    write(tmp_path / "changed", study, {}, {})
    write(tmp_path / "changed", other, {}, {})
    (change,) = json.loads((tmp_path / "changed" / STUDY_FILE).read_text())["changes"]
    assert change["margin"] == study.margin
    assert set(change) == {"margin", "rule"}
    shutil.rmtree(tmp_path / "changed")
    backwards = dict(reversed(records.items()))
    write(tmp_path, study, backwards, {name: invented.ENVIRONMENT})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_records_that_another_one_has_written_are_kept(tmp_path: Path) -> None:
    study = invented.study()
    records = invented.records(study)
    some = dict([*records.items()][::2])
    write(tmp_path, study, {key: record for key, record in records.items() if key not in some}, {})
    write(tmp_path, study, some, {})
    assert read(tmp_path) == records
    key = next(key for key, record in records.items() if not record.scheduled)
    shorter = replace(records[key], steps=1)
    write(tmp_path, study, {key: shorter}, {})
    assert read(tmp_path)[key] == records[key]
    other = {step: {"line 1": {"loss": 1.0}} for step in records[key].readings}
    write(tmp_path, study, {key: replace(records[key], readings=other)}, {})
    both = read(tmp_path)[key].readings
    assert all(both[step] == values | other[step] for step, values in records[key].readings.items())
    failed = replace(shorter, failure="the loss is nan at step 2")
    write(tmp_path, study, {key: failed}, {})
    assert read(tmp_path)[key] == failed
    store = Store(study, open_storage(tmp_path / "journal.log"))
    store.add(records, {})
    store.add(read(tmp_path), {})
    assert store.records() == read(tmp_path)


@pytest.mark.parametrize("name", [STUDY_FILE, "environments.json", "runs.jsonl"])
@pytest.mark.parametrize("damage", [b'{"a": ', b"\xff", b"[]"])
def test_damaged_files_are_named_and_nothing_is_written(tmp_path: Path, name: str, damage: bytes) -> None:
    study = invented.study()
    write(tmp_path, study, {}, {})
    (tmp_path / name).write_bytes(damage)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RecordError, match=name):
        write(tmp_path, study, invented.records(study), {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
