import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from amuse_lab.errors import RecordError
from amuse_lab.studies.store import Store, open_storage
from amuse_lab.studies.study import Request, Study
from amuse_lab.studies.tuning import wanted
from tests.amuse_lab.studies import invented


@pytest.fixture(params=["journal", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "journal.log") if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


def identities(store: Store, requests: list[Request]) -> list[str]:
    return [store.identity(request) for request in requests]


def test_two_workers_take_each_run_once_and_see_each_others_records(place: str) -> None:
    study = invented.study()
    stores = [Store(study, open_storage(place)) for _ in range(2)]
    taken: list[str] = []
    while any(requests := wanted(study, stores[0].records())):
        claims = [(store, claim) for store in stores if (claim := store.claim(requests))]
        taken += [store.identity(claim.request) for store, claim in claims]
        for store, claim in claims:
            store.finish(claim, invented.run(study, claim.request), invented.ENVIRONMENT)
    assert len(taken) == len(set(taken))
    assert stores[1].records() == invented.records(study)
    assert stores[1].environments() == {"invented": invented.ENVIRONMENT}


def test_a_journal_with_a_torn_line_is_named_with_the_remedy(tmp_path: Path) -> None:
    """As after a loss of power, and what was written then."""
    place = tmp_path / "journal.log"
    store = Store(invented.study(), open_storage(place))
    store.add(invented.records(invented.study()), {})
    whole = place.read_bytes()
    place.write_bytes(whole[:-9] + 2 * whole.splitlines(keepends=True)[-1])
    with pytest.raises(RecordError, match=r"journal\.log: .*Move it away: the records have the runs"):
        open_storage(place)


def test_of_two_trials_of_one_run_the_later_is_dropped(place: str) -> None:
    """Both workers look before either has made its trial."""
    study = invented.study()
    first, second = (Store(study, open_storage(place)) for _ in range(2))
    requests = wanted(study, {})[:1]
    identity = first.identity(requests[0])
    for store in (first, second):
        store._optuna.add_trial(store._created(requests[0], identity, None))
    claims = [store.claim(requests) for store in (second, first)]
    assert [claim is None for claim in claims] == [False, True]


def test_what_is_given_up_can_be_taken_again_but_not_by_who_cannot_run_it(place: str) -> None:
    study = invented.study()
    first, second = (Store(study, open_storage(place)) for _ in range(2))
    requests = wanted(study, {})[:1]
    claim = first.claim(requests)
    assert claim is not None
    assert second.claim(requests) is None
    first.release(claim)
    assert first.claim(requests, without=identities(first, requests)) is None
    again = second.claim(requests)
    assert again is not None
    assert again.request == requests[0]


def test_a_record_without_what_is_asked_for_now_is_made_again(place: str) -> None:
    """An entry has got one more readout: the complete trial does not keep its run from being taken."""
    study = invented.study()
    store = Store(study, open_storage(place))
    requests = [replace(wanted(study, {})[0], readouts=("x",))]
    claim = store.claim(requests)
    assert claim is not None
    store.finish(claim, invented.run(study, claim.request), invented.ENVIRONMENT)
    assert store.claim(requests) is None
    more = [replace(requests[0], readouts=("x", "power 10"))]
    again = store.claim(more)
    assert again is not None
    store.finish(again, invented.run(study, again.request), invented.ENVIRONMENT)
    (record,) = store.records().values()
    assert record.satisfies(more[0], study)


def test_a_failure_counts_more_than_an_earlier_record_of_as_many_steps(place: str) -> None:
    study = invented.study()
    store = Store(study, open_storage(place))
    record = invented.run(study, wanted(study, {})[0])
    failed = replace(record, failure="the training loss of step 41 is inf")
    store.add({record.key: record}, {})
    store._optuna.add_trial(store._created(wanted(study, {})[0], "again", failed))
    assert store.records() == {record.key: failed}


def test_what_an_earlier_form_of_the_study_left_waiting_is_not_run(place: str) -> None:
    study = invented.study()
    store = Store(study, open_storage(place))
    left, *others = wanted(study, {})
    store._optuna.add_trial(store._created(left, "of another study", None))
    assert store.claim(others[:1]) is None  # the one that was waiting is dropped
    claim = store.claim(others[:1])
    assert claim is not None
    assert claim.request == others[0]


def test_a_storage_that_does_not_answer_for_a_moment_loses_no_run(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = invented.study()
    store = Store(study, open_storage(place))
    claim = store.claim(wanted(study, {})[:1])
    assert claim is not None
    usual, failures = optuna.Trial.set_user_attr, [OSError("busy"), OSError("busy")]

    def failing(trial: optuna.Trial, key: str, value: object) -> None:
        if failures:
            raise failures.pop()
        usual(trial, key, value)

    monkeypatch.setattr(optuna.Trial, "set_user_attr", failing)
    monkeypatch.setattr("amuse_lab.studies.store.time.sleep", lambda _: None)
    store.alive()
    store.finish(claim, invented.run(study, claim.request), invented.ENVIRONMENT)
    assert len(store.records()) == 1


CRASH = """
import os, sys
from amuse_lab.studies.store import Store, open_storage
from amuse_lab.studies.tuning import wanted
from tests.amuse_lab.studies import invented

study = invented.study()
assert Store(study, open_storage(sys.argv[1])).claim(wanted(study, {})[:1])
os._exit(9)
"""


def test_the_run_of_a_worker_that_died_is_taken_again(place: str) -> None:
    study = invented.study()
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", CRASH, place],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 9
    store = Store(study, open_storage(place))
    assert store.running() == 1
    assert store.claim(wanted(study, {})[:1]) is not None


def test_a_silent_worker_of_another_machine_is_taken_for_dead(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = invented.study()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "elsewhere")
        theirs = Store(study, open_storage(place))
    requests = wanted(study, {})[:1]
    assert theirs.claim(requests) is not None
    ours = Store(study, open_storage(place))
    assert ours.claim(requests) is None
    monkeypatch.setattr("amuse_lab.studies.store._SILENT_SECONDS", -1.0)
    assert ours.claim(requests) is not None


def test_records_of_earlier_sittings_are_added_once(place: str) -> None:
    study = invented.study()
    records = invented.records(study)
    store = Store(study, open_storage(place))
    for _ in range(2):
        store.add(records, {"invented": invented.ENVIRONMENT})
    assert store.records() == records
    assert wanted(study, store.records()) == []
    assert len(store._optuna.trials) == len(records)


def test_a_storage_that_cannot_be_opened_is_one_line() -> None:
    with pytest.raises(RecordError, match="cannot open the storage mysterious://nowhere: "):
        open_storage("mysterious://nowhere")


def settings(study: Study) -> set[str]:
    return {f"{entry.name}.{name}" for entry in study.entries for name in entry.tuned}


def test_optuna_shows_the_settings_and_the_result_of_each_run(place: str) -> None:
    study = invented.study()
    store = Store(study, open_storage(place))
    claim = store.claim(wanted(study, {})[:1])
    assert claim is not None
    record = invented.run(study, claim.request)
    store.finish(claim, record, invented.ENVIRONMENT)
    (trial,) = store._optuna.trials
    assert set(trial.params) < settings(study)
    assert trial.params["muon-cosine.lr"] == record.point["lr"]
    assert trial.value == min(values["loss"] for values in record.readings[record.steps].values())
