"""`amuse-lab compare`: makes the runs of a study, on several processes and in as many sittings as needed."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from amuse_lab.arguments import parse as parse_arguments
from amuse_lab.errors import require
from amuse_lab.studies import records as files
from amuse_lab.studies.catalogue import find
from amuse_lab.studies.measuring import measure, surroundings
from amuse_lab.studies.store import Store, open_storage, recorded
from amuse_lab.studies.study import Record, Records, Request, Study
from amuse_lab.studies.tuning import wanted

_WORST = 1e9  # what runs that are foreseen measure, so that none of them is chosen before one that was made
_WAIT_SECONDS = 1.0  # between two looks at what the others do


@dataclass(frozen=True)
class CompareOptions:
    """Makes the runs of a study that its records lack.

    Attributes:
        records: Where its records are kept; None means `records/NAME`.
        storage: Where its workers meet: a file of Optuna's journal, or the URL of a database when several
            machines work on one study. None means a file beside the checkpoints.
        workers: Processes of this machine, one for each core or GPU.
        runs: Folder for checkpoints and the journal.
        plan: Say what there is left to run and end.
    """

    records: Path | None = None
    storage: str | None = None
    workers: int = 1
    runs: Path = Path("runs")
    plan: bool = False

    def __post_init__(self) -> None:
        require(self.workers >= 1, "workers", "at least 1", self.workers)


def parse(arguments: Sequence[str]) -> tuple[Study, CompareOptions]:
    """Read the command line: the name of a study, then options.

    Raises:
        ConfigError: If there is no study of this name, or an option is wrong.
    """
    name, *rest = arguments or ("",)
    if name in ("-h", "--help"):
        name, rest = "", ["--help"]
    options = parse_arguments(
        CompareOptions,
        rest,
        default=CompareOptions(),
        prog=f"amuse-lab compare {name or 'STUDY'}",
        description="Makes the runs of a study that its records lack. It can be interrupted and goes on "
        "where it was; several may work on one study.",
        others=("--data-root",),
    )
    return find(name), options


def outlook(study: Study, records: Records) -> list[Request]:
    """Return the runs that are left, as far as can be foreseen: as if every trial found the same."""
    foreseen = dict(records)
    left: list[Request] = []
    while missing := wanted(study, foreseen):
        left += missing
        for request in missing:
            foreseen[request.key(study)] = _foreseen(study, request)
    return left


def _foreseen(study: Study, request: Request) -> Record:
    values = {readout: {study.measure: _WORST} for readout in request.readouts}
    return Record(
        key=request.key(study),
        entry=request.entry,
        point=request.point,
        seed=request.seed,
        steps=request.steps,
        scheduled=study.entry(request.entry).scheduled,
        readings=dict.fromkeys(request.wanted_at(study), values),
    )


def run(study: Study, options: CompareOptions) -> int:
    """Make the runs that are missing, and write the records.

    Returns:
        The exit status: 0 if the study is complete, 1 if runs failed for no fault of the optimizer's.
    """
    folder = options.records or Path("records") / study.name
    known, environments = files.read(folder), files.read_environments(folder)
    work = options.runs / "studies" / study.name
    place = options.storage or work / "journal.log"
    if options.plan:
        if "://" in str(place) or Path(place).is_file():
            known = files.merged(known, recorded(study.name, open_storage(place)))
        print(_forecast(study, known, options.workers))
        return 0
    study.run.task.check(study.longest)
    store = Store(study, open_storage(place))
    store.add(known, environments)
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_worker, args=(study, place, work, number))
        for number in range(options.workers)
    ]
    print(_forecast(study, store.records(), options.workers), flush=True)
    try:
        for worker in workers:
            worker.start()
        _watch(study, store, folder, workers)
    finally:
        started = [worker for worker in workers if worker.pid is not None]
        for worker in started:
            worker.terminate()
        for worker in started:  # each finishes its step and saves
            worker.join()
        files.write(folder, study, store.records(), store.environments())
    missing = wanted(study, store.records())
    print(f"records: {folder}" + (f"; {len(missing)} runs are missing" if missing else "; complete"))
    return 1 if missing else 0


def _forecast(study: Study, records: Records, workers: int) -> str:
    """How much is left, in runs, steps and, once something has been run, in hours."""
    left = outlook(study, records)
    steps = sum(request.steps for request in left)
    done = sum(record.steps for record in records.values())
    seconds = sum(record.seconds for record in records.values())
    text = f"{study.name}: {len(records)} runs done, about {len(left)} runs ({steps:,} steps) left"
    if not seconds or not left:
        return text
    hours = steps * seconds / done / workers / 3600
    return f"{text}, about {hours:.1f} hours on {workers} process{'es' if workers > 1 else ''}"


def _watch(study: Study, store: Store, folder: Path, workers: Sequence[BaseProcess]) -> None:
    """Write the records and say what has come, until no worker is left."""
    known = store.records()
    while any(worker.is_alive() for worker in workers):
        time.sleep(_WAIT_SECONDS)
        found = store.records()
        new = [record for key, record in found.items() if key not in known or known[key] != record]
        if new:
            files.write(folder, study, found, store.environments())
            for record in new:
                print(_line(study, record), flush=True)
            print(_forecast(study, found, len(workers)), flush=True)
        known = found


def _line(study: Study, record: Record) -> str:
    point = ", ".join(f"{name} {value:g}" for name, value in record.point.items())
    ends = record.readings.get(record.steps, {})
    values = [values[study.measure] for values in ends.values() if study.measure in values]
    result = record.failure or (f"{study.measure} {min(values):.4f}" if values else "no value")
    return f"  {record.entry} to {record.steps}, seed {record.seed}: {result} ({point})"


def _worker(study: Study, place: str | Path, folder: Path, number: int) -> None:
    """What each process does: take runs and make them until none can be taken."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if study.run.device == "cuda":  # one GPU for each
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)
    try:
        work(study, Store(study, open_storage(place)), folder)
    except KeyboardInterrupt:
        sys.exit(130)


def work(study: Study, store: Store, folder: Path) -> None:
    """Take runs and make them, until none is wanted or can be made here."""
    described = surroundings(study.run)
    name = files.environment_hash(described)
    given_up: set[str] = set()
    parent = os.getppid()
    while (requests := wanted(study, store.records())) and os.getppid() == parent:
        claim = store.claim(requests, without=given_up)
        if claim is None:
            left = [request for request in requests if store.identity(request) not in given_up]
            if not left and not store.running():
                return
            time.sleep(_WAIT_SECONDS)
            continue
        try:
            record = measure(
                study, claim.request, folder / "checkpoints", environment=name, alive=store.alive
            )
        except KeyboardInterrupt:
            store.release(claim)
            raise
        except Exception:  # not the optimizer's fault: another sitting may have more memory or disk
            given_up.add(store.identity(claim.request))
            store.release(claim)
            print(f"  {claim.request} was not run:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        else:
            store.finish(claim, record, described)
