"""The runs of a study as trials of Optuna: what waits, what runs where, and what has been found.

A run is one trial, made with all that says what it is, so that any of Optuna's storages shows all workers the
same runs. Who takes a run of which another worker has an earlier trial drops it: each is made once.
"""

import contextlib
import json
import math
import os
import socket
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import ArgumentError

from amuse_lab.errors import RecordError
from amuse_lab.studies import records as files
from amuse_lab.studies.study import Record, Records, Request, Study

_SILENT_SECONDS = 1800.0  # after which a worker of which nothing was heard is taken for dead
_HEARD_SECONDS = 30.0  # between two signs of life
_STARTING_SECONDS = 60.0  # within which a worker signs what it has taken

_SETTLING_SECONDS = 0.3  # within which two who have signed one trial see each other
_ATTEMPTS = 3  # to open a storage, which two workers may want to make at once, and to write a record

_TAKEN = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)


def open_storage(place: str | Path) -> BaseStorage:
    """Open one of Optuna's storages.

    Args:
        place: A file for Optuna's journal, which is made if it does not exist; or the URL of a database, such
            as sqlite:///study.db and postgresql+psycopg://user@host/name.

    Raises:
        RecordError: If it cannot be opened, as a journal whose end was lost with the power.
    """
    for left in reversed(range(_ATTEMPTS)):
        try:
            if "://" in str(place):
                return RDBStorage(str(place))
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(place)))
        except Exception as error:  # a driver's own
            reason = str(error).split("\n")[0]
            if isinstance(error, json.JSONDecodeError):
                reason += (
                    "; the file is damaged. Move it away: the records have the runs that were finished, but "
                    "for those of the last moments"
                )
            if not left or isinstance(error, ValueError | ImportError | ArgumentError):
                raise RecordError(f"cannot open the storage {place}: {reason}") from error
            time.sleep(1.0)  # another one may have been making the tables
    raise AssertionError("the last opening returns or raises")


def recorded(name: str, storage: BaseStorage) -> dict[str, Record]:
    """Return what a storage has of a study, without writing to it; nothing if it does not know the study."""
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return {}
    return _records_of(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _records_of(trials: Iterable[FrozenTrial]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for trial in trials:
        record = files.record_from_json(json.loads(trial.user_attrs["record"]))
        found[record.key] = found[record.key].merged(record) if record.key in found else record
    return found


@dataclass(frozen=True)
class Claim:
    """A run that this worker has taken.

    Attributes:
        request: What is to be run.
        number: Number that Optuna has given the run's trial.
    """

    request: Request
    number: int


class Store:
    """The runs of a study in a storage.

    Args:
        study: The study; studies of one name in one storage have their records in common.
        storage: Storage that all workers of the study share, from `open_storage`.
    """

    def __init__(self, study: Study, storage: BaseStorage) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = study
        self._optuna = optuna.create_study(
            storage=storage, study_name=study.name, direction="minimize", load_if_exists=True
        )
        self._settles = isinstance(storage, RDBStorage)
        self._worker = {"host": socket.gethostname(), "process": os.getpid(), "token": uuid.uuid4().hex}
        self._heard = 0.0
        self._trial: optuna.Trial | None = None

    def _trials(self, states: Collection[TrialState]) -> list[FrozenTrial]:
        return self._optuna.get_trials(deepcopy=False, states=tuple(states))

    def records(self) -> dict[str, Record]:
        """Return what has been found, by key; of several records of a run what counts of them."""
        return _records_of(self._trials((TrialState.COMPLETE,)))

    def environments(self) -> dict[str, Any]:
        """Return the environments of the records by their hashes."""
        return dict(self._optuna.user_attrs.get("environments", {}))

    def add(self, records: Records, environments: Mapping[str, Any]) -> None:
        """Add the records that the storage does not have, as those of earlier sittings.

        Those of optimizers that the study does not have any more are left out.
        """
        known, entries = self.records(), {entry.name for entry in self._study.entries}
        for record in records.values():
            if record.entry not in entries:
                continue
            if record.key not in known or known[record.key].merged(record) != known[record.key]:
                request = Request(record.entry, record.point, record.seed, record.steps, False, ())
                trial = self._created(request, f"{record.key}/{record.steps}", record)
                self._optuna.add_trial(trial)
        self._remember(environments)

    def _remember(self, environments: Mapping[str, Any]) -> None:
        known = self.environments()
        if not environments.keys() <= known.keys():
            self._optuna.set_user_attr("environments", known | dict(environments))

    def _created(self, request: Request, identity: str, record: Record | None) -> FrozenTrial:
        """A trial that waits, or one that is complete."""
        entry = self._study.entry(request.entry)
        distributions = {
            f"{entry.name}.{name}": optuna.distributions.FloatDistribution(
                min(scale.low, request.point[name]), max(scale.high, request.point[name])
            )
            for name, scale in entry.tuned.items()
        }
        attributes: dict[str, Any] = {"identity": identity, "request": json.dumps(asdict(request))}
        if record is not None:
            attributes["record"] = json.dumps(files.record_to_json(record))
        return create_trial(
            state=TrialState.WAITING if record is None else TrialState.COMPLETE,
            value=None if record is None else self._value(record),
            params={f"{entry.name}.{name}": float(request.point[name]) for name in entry.tuned},
            distributions=distributions,  # type: ignore[arg-type]  # a dict of a subclass
            user_attrs=attributes,
        )

    def _value(self, record: Record) -> float:
        """What Optuna shows of a run: the best of its readouts at its end."""
        ends = record.readings.get(record.steps, {})
        return min((values.get(self._study.measure, float("inf")) for values in ends.values()), default=1e30)

    def claim(self, requests: Sequence[Request], *, without: Collection[str] = ()) -> Claim | None:
        """Take the first run that nobody has taken.

        Args:
            requests: Runs that are wanted, the most urgent first.
            without: Identities, key and steps, of runs that this worker is not to take.

        Returns:
            None if there is none, or if another worker was faster.
        """
        self.release_dead()
        wanted = {self.identity(request): request for request in requests}
        for identity, request in wanted.items():
            if identity not in without and not self._earlier(identity, request, math.inf):
                self._optuna.add_trial(self._created(request, identity, None))
                break
        if not self._trials((TrialState.WAITING,)):
            return None
        trial = self._optuna.ask()
        if "identity" not in trial.user_attrs:  # another one was faster, and Optuna has made a trial up
            self._optuna.tell(trial, state=TrialState.FAIL)
            return None
        if not self._is_ours(trial):
            return None
        identity = trial.user_attrs["identity"]
        asked = wanted.get(identity)  # None for what an earlier form of the study left waiting
        if asked is None or identity in without or self._earlier(identity, asked, trial.number):
            self._optuna.tell(trial, state=TrialState.FAIL)
            return None
        self._trial = trial
        return Claim(asked, trial.number)

    def _earlier(self, identity: str, request: Request, number: float) -> bool:
        """Whether a trial before this number is this run: waiting, under way, or with what is asked for."""
        for trial in self._trials(_TAKEN):
            if trial.user_attrs.get("identity") == identity and trial.number < number:
                if trial.state is not TrialState.COMPLETE:
                    return True
                record = files.record_from_json(json.loads(trial.user_attrs["record"]))
                if record.satisfies(request, self._study):
                    return True
        return False

    def _is_ours(self, trial: optuna.Trial) -> bool:
        """Sign a trial that Optuna has given us; whether nobody else has.

        SQLite may give a waiting trial to two who ask at once: then the last signature counts.
        """
        trial.set_user_attr("worker", self._worker | {"seen": time.time()})
        if not self._settles:
            return True
        time.sleep(_SETTLING_SECONDS)
        now = self._optuna.get_trials(deepcopy=False)[trial.number]
        return bool(now.user_attrs["worker"]["token"] == self._worker["token"])

    def identity(self, request: Request) -> str:
        """Return what tells a run from all others: its key and how far it goes."""
        return f"{request.key(self._study)}/{request.steps}"

    def alive(self) -> None:
        """Tell the others, now and then, that the claimed run is under way."""
        if self._trial is not None and time.monotonic() - self._heard > _HEARD_SECONDS:
            self._heard = time.monotonic()
            with contextlib.suppress(Exception):  # a storage that does not answer is no reason to lose a run
                self._trial.set_user_attr("worker", self._worker | {"seen": time.time()})

    def finish(self, claim: Claim, record: Record, environment: Mapping[str, Any]) -> None:
        """Put the record of a claimed run into the storage."""
        assert self._trial is not None, "a run has been claimed"
        for left in reversed(range(_ATTEMPTS)):
            try:
                self._remember({record.environment: environment})
                self._trial.set_user_attr("record", json.dumps(files.record_to_json(record)))
                self._optuna.tell(claim.number, self._value(record))
                break
            except UpdateFinishedTrialError:  # taken for dead, and made by another one
                break
            except Exception:
                if not left:
                    raise
                time.sleep(1.0)
        self._trial = None

    def release(self, claim: Claim) -> None:
        """Give a claimed run up, so that it can be taken again."""
        self._optuna.tell(claim.number, state=TrialState.FAIL, skip_if_finished=True)
        self._trial = None

    def running(self) -> int:
        """Return how many runs are under way, on all machines."""
        return len(self._trials((TrialState.RUNNING,)))

    def release_dead(self) -> None:
        """Give the runs up whose workers have died."""
        for trial in self._trials((TrialState.RUNNING,)):
            if self._is_dead(trial):
                self._optuna.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get("worker")
        if worker is None:
            started = trial.datetime_start
            return started is not None and time.time() - started.timestamp() > _STARTING_SECONDS
        if worker["host"] == self._worker["host"] and not _is_process(worker["process"]):
            return True
        return bool(time.time() - worker["seen"] > _SILENT_SECONDS)


def _is_process(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
