import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from amuse_lab import cli
from amuse_lab.errors import ConfigError
from amuse_lab.studies import catalogue, compare, measuring
from amuse_lab.studies import records as files
from amuse_lab.studies.compare import CompareOptions, outlook, parse, work
from amuse_lab.studies.store import Store, open_storage
from amuse_lab.studies.study import Record
from amuse_lab.studies.tuning import wanted
from tests.amuse_lab.studies import invented, small

ROOT = Path(__file__).parents[3]


def start(
    folder: Path, name: str, storage: str, *, workers: int = 1, study: str = "small", **environment: str
) -> "subprocess.Popen[str]":
    """Start the command in a process group of its own."""
    places = ["--records", str(folder / name), "--storage", storage, "--runs", str(folder / "runs")]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.programs.compare", study, *places, "--workers", str(workers)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return output


def timeless(folder: Path) -> dict[str, Record]:
    return {key: replace(record, seconds=0.0) for key, record in files.read(folder).items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """The records of the study of seconds, made in one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    output = finish(start(folder, "records", str(folder / "journal.log")))
    assert output.endswith("; complete\n")
    found = timeless(folder / "records")
    assert wanted(small.study(), found) == []
    return found


def wait_for_a_run(process: "subprocess.Popen[str]") -> None:
    """Return once one more run has been made, or the study has come to its end."""
    assert process.stdout is not None
    while (line := process.stdout.readline()) and ", seed " not in line:
        pass


def killed(tmp_path: Path, moments: int) -> int:
    """Kill the study with SIGKILL in the middle of runs; returns how often it was going on.

    It has 236 training steps, and is killed 12 after it has begun to make some at most, so that none of ten
    moments comes too late.
    """
    chance = random.Random(0)
    alive = 0
    for _ in range(moments):
        journal = str(tmp_path / "journal.log")
        process = start(tmp_path, "records", journal, workers=2, STEP_SECONDS="0.05")
        assert process.stdout is not None
        for _ in range(chance.randint(1, 12)):
            while (line := process.stdout.readline()) and line != "step\n":
                pass
        time.sleep(chance.uniform(0.0, 0.05))
        alive += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finish(start(tmp_path, "records", str(tmp_path / "journal.log")))
    return alive


def test_a_study_that_is_killed_ends_with_the_records_of_an_undisturbed_one(
    tmp_path: Path, undisturbed: dict[str, Record]
) -> None:
    assert killed(tmp_path, moments=2) == 2
    assert timeless(tmp_path / "records") == undisturbed


@pytest.mark.slow
def test_a_study_killed_at_ten_moments_ends_with_the_records_of_an_undisturbed_one(
    tmp_path: Path, undisturbed: dict[str, Record]
) -> None:
    assert killed(tmp_path, moments=10) == 10
    assert timeless(tmp_path / "records") == undisturbed


def test_sigterm_writes_what_there_is(tmp_path: Path) -> None:
    process = start(tmp_path, "records", str(tmp_path / "journal.log"), study="endless")
    wait_for_a_run(process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    found = files.read(tmp_path / "records")
    assert found
    assert wanted(small.endless(), found) != []


def each_run_once(tmp_path: Path, storage: str, undisturbed: dict[str, Record]) -> None:
    """Two commands, as of two machines, on one storage."""
    both = [start(tmp_path / name, "records", storage) for name in ("one", "two")]
    for process in both:
        finish(process)
    for name in ("one", "two"):
        assert timeless(tmp_path / name / "records") == undisturbed
    place = open_storage(storage)
    study = optuna.load_study(study_name="small", storage=place)
    complete = [t for t in study.trials if t.state is optuna.trial.TrialState.COMPLETE]
    assert isinstance(place, optuna.storages.RDBStorage)
    place.engine.dispose()
    made = [trial.user_attrs["identity"] for trial in complete]
    assert len(made) == len(set(made))
    # A run without a horizon is one record, however often it went on.
    assert {identity.partition("/")[0] for identity in made} == set(undisturbed)


def test_two_commands_on_one_database_make_each_run_once(
    tmp_path: Path, undisturbed: dict[str, Record]
) -> None:
    each_run_once(tmp_path, f"sqlite:///{tmp_path}/study.db", undisturbed)


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    """The URL of a database of a server of our own, on a socket in a folder."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("no PostgreSQL on this machine; the twin on SQLite runs")
    folder = tmp_path / "postgresql"
    folder.mkdir()
    as_user: list[str] = []
    if os.getuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        for parent in [*folder.parents][:-2]:
            parent.chmod(parent.stat().st_mode | 0o011)
        as_user = ["runuser", "-u", "postgres", "--"]
    data, binaries = folder / "data", programs[-1].parent
    settings = f"-c listen_addresses='' -c unix_socket_directories={folder}"

    def call(*command: str | Path) -> None:
        subprocess.run([*as_user, *map(str, command)], check=True, capture_output=True, cwd=folder)

    call(binaries / "initdb", "-D", data, "-U", "study", "--auth=trust")
    call(binaries / "pg_ctl", "-D", data, "-o", settings, "-l", folder / "log", "-w", "start")
    try:
        call(binaries / "createdb", "-h", folder, "-U", "study", "study")
        yield f"postgresql+psycopg://study@/study?host={folder}"
    finally:
        call(binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop")


@pytest.mark.slow
def test_two_commands_on_postgresql_make_each_run_once(
    tmp_path: Path, postgresql: str, undisturbed: dict[str, Record]
) -> None:
    each_run_once(tmp_path, postgresql, undisturbed)


def test_a_run_that_fails_is_said_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not recorded: another sitting makes it."""
    study = invented.study()
    broken = [True]

    def measured(_study: object, request: object, _folder: object, **_: object) -> Record:
        if broken[0] and request.entry == "amuse":
            raise MemoryError("no room")
        return invented.run(study, request)

    monkeypatch.setattr(compare, "measure", measured)
    store = Store(study, open_storage(tmp_path / "journal.log"))
    work(study, store, tmp_path)
    found = store.records()
    assert {record.entry for record in found.values()} == {"muon-cosine"}
    assert "MemoryError: no room" in capsys.readouterr().err
    assert {request.entry for request in wanted(study, found)} == {"amuse"}
    broken[0] = False
    work(study, store, tmp_path)
    expected = {
        key: replace(record, environment="invented") for key, record in invented.records(study).items()
    }
    assert store.records() == expected


def test_what_is_left_is_foreseen() -> None:
    study = invented.study()
    left = outlook(study, {})
    made = invented.records(study)
    assert {request.key(study) for request in left} >= {
        r.key for r in made.values() if r.seed == 0 and r.steps == 40
    }
    budget = sum(request.steps for request in left)
    assert budget == pytest.approx(sum(record.steps for record in made.values()), rel=0.5)
    assert outlook(study, made) == []


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_what_is_foreseen_is_never_chosen_before_what_was_made(share: float) -> None:
    study = invented.study()
    made = [*invented.records(study).items()]
    known = dict(made[: round(share * len(made))])
    foreseen = {request.key(study) for request in outlook(study, known)}
    assert not foreseen & {key for key, record in known.items() if record.steps == study.longest}
    assert len(known) + len(foreseen) <= len(made) + 8  # four more for each optimizer, beyond an edge


def test_the_plan_is_said_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "measure", None)
    assert cli.main(["compare", "shakespeare-anytime", "--plan"]) == 0
    assert capsys.readouterr().out.startswith("shakespeare-anytime: 0 runs done, about ")
    assert list(tmp_path.iterdir()) == []


def test_the_plan_knows_what_the_journal_has_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = invented.study()
    monkeypatch.setattr(catalogue, "STUDIES", {"invented": invented.study})
    made = [*invented.records(study).items()]
    files.write(tmp_path / "records", study, dict(made[:5]), {})
    journal = tmp_path / "runs" / "studies" / "invented" / "journal.log"
    Store(study, open_storage(journal)).add(dict(made[3:12]), {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    places = ["--records", str(tmp_path / "records"), "--runs", str(tmp_path / "runs")]
    assert cli.main(["compare", "invented", "--plan", *places]) == 0
    assert capsys.readouterr().out.startswith("invented: 12 runs done, about ")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    database = f"sqlite:///{tmp_path}/study.db"
    assert cli.main(["compare", "invented", "--plan", "--storage", database, *places]) == 0
    assert capsys.readouterr().out.startswith("invented: 5 runs done, about ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shakespear-anytime"], "unknown study 'shakespear-anytime'; did you mean 'shakespeare-anytime'?"),
        (["shakespeare-anytime", "--workers", "0"], "workers must be at least 1, got 0"),
        (["shakespeare-anytime", "--worker", "2"], "unknown option --worker; did you mean --workers?"),
    ],
)
def test_wrong_requests_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    assert str(caught.value).startswith(message)


def test_records_hold_what_was_fixed_before(tmp_path: Path) -> None:
    study = small.study()
    files.write(tmp_path, study, {}, {})
    content = json.loads((tmp_path / files.STUDY).read_text())
    assert content["horizons"] == [4, 8, 16]
    assert content["entries"][0]["tuned"] == {
        "lr": {"low": 0.005, "high": 0.08, "complement": False, "whole": False}
    }
    assert "lr" not in content["entries"][0]["optimizer"]


def test_records_outlive_the_optimizer_that_a_study_no_longer_has(
    undisturbed: dict[str, Record], tmp_path: Path
) -> None:
    """In the files, whatever is written next; a storage that is new does without them."""
    study = small.study()
    environment = next(iter(undisturbed.values())).environment
    files.write(tmp_path, study, undisturbed, {environment: {"cores": 2}})
    fewer = replace(study, entries=study.entries[1:])
    files.write(tmp_path, fewer, {}, {})
    gone = {key: record for key, record in undisturbed.items() if record.entry == study.entries[0].name}
    assert 0 < len(gone) < len(undisturbed)
    assert timeless(tmp_path) == undisturbed
    assert files.read_environments(tmp_path) == {environment: {"cores": 2}}
    store = Store(fewer, open_storage(tmp_path / "journal.log"))
    store.add(undisturbed, {})
    assert store.records().keys() == undisturbed.keys() - gone.keys()


def test_options_are_those_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--records", "--storage", "--workers", "--runs", "--plan"))
    assert CompareOptions().workers == 1
