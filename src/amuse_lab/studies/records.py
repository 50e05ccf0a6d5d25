"""The records of a study as files: runs.jsonl, environments.json and study.json in one folder."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from amuse_lab.config import to_json
from amuse_lab.errors import RecordError
from amuse_lab.files import replacing
from amuse_lab.studies.frontier import STEPS_TO_REACH
from amuse_lab.studies.study import Record, Records, Study
from amuse_lab.studies.tuning import first_round, tuning_rule
from amuse_lab.studies.verdicts import rule

RUNS = "runs.jsonl"
ENVIRONMENTS = "environments.json"
STUDY = "study.json"
CHANGES = "changes"
_SAID = ("about", "caveats")


def record_to_json(record: Record) -> dict[str, Any]:
    """Return a record in JSON's types."""
    return asdict(record)


def record_from_json(content: Mapping[str, Any]) -> Record:
    """Return the record that `record_to_json` has written.

    Raises:
        TypeError: If a field is missing or unknown.
    """
    readings = {int(step): values for step, values in content["readings"].items()}
    training = tuple((int(step), float(loss)) for step, loss in content["training"])
    return Record(**{**content, "readings": readings, "training": training})


def study_to_json(study: Study) -> dict[str, Any]:
    """Return all that was fixed before the runs, in JSON's types."""
    run = {
        name: value
        for name, value in to_json(study.run).items()
        if name in ("recipe", "task", "clip", "precision", "threads", "device")
    }
    judged = None if study.judged is None else to_json(replace(study.run, task=study.judged))["task"]
    entries = [
        {
            "name": entry.name,
            "optimizer": {
                name: value
                for name, value in ({"name": entry.optimizer.name} | asdict(entry.optimizer)).items()
                if name not in entry.tuned
            },
            "tuned": {name: asdict(scale) for name, scale in entry.tuned.items()},
            "trials": first_round(study, entry),
            "readouts": entry.readouts,
            "scheduled": entry.scheduled,
            "about": entry.about,
        }
        for entry in study.entries
    ]
    rest = {
        name: getattr(study, name)
        for name in (
            *(
                "name",
                "question",
                "horizons",
                "warmup_steps",
                "trials",
                "reused",
                "tuning_seeds",
                "confirmed",
            ),
            *("reporting_seeds", "seeds_at_longest", "kept", "measure", "beside", "margin"),
            *("caveats", "reasons"),
        )
    }
    rules = {"rule": rule(study), "tuning_rule": tuning_rule(study), "steps_rule": STEPS_TO_REACH}
    content: dict[str, Any] = json.loads(
        json.dumps(rest | rules | {"run": run, "judged": judged, "entries": entries})
    )
    return content


def environment_hash(environment: Mapping[str, Any]) -> str:
    """Return a hash of an environment, which several runs share."""
    return hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:8]


def read(folder: Path) -> dict[str, Record]:
    """Read the records of a folder; none if it has none.

    Raises:
        RecordError: If a line is damaged.
    """
    path = folder / RUNS
    found: dict[str, Record] = {}
    if not path.exists():
        return found
    for number, line in enumerate(_text(path).splitlines(), start=1):
        try:
            record = record_from_json(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordError(
                f"{path}, line {number}: not the record of a run: {error}; restore the line, or take it out "
                "to have the run made again"
            ) from error
        found[record.key] = record
    return found


def merged(records: Records, newer: Records) -> dict[str, Record]:
    """Return the records of both, and of runs that both have what `Record.merged` says."""
    both = {key: records[key].merged(new) if key in records else new for key, new in newer.items()}
    return {**records, **both}


def read_environments(folder: Path) -> dict[str, Any]:
    """Read the environments of a folder by their hashes; none if it has none.

    Raises:
        RecordError: If the file is damaged.
    """
    return _content(folder / ENVIRONMENTS)


def _content(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise RecordError(f"{path} is damaged: {error}; restore it, or move it away") from error
    if not isinstance(content, dict):
        raise RecordError(f"{path} is damaged: it holds no object; restore it, or move it away")
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is damaged: {error}; restore it") from error


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a study.json says otherwise than the study of now: the earlier values, by name.

    What is only said about the study, `_SAID`, may be put in other words.
    """
    told = {name: value for name, value in before.items() if name not in (CHANGES, *_SAID)}
    return {name: value for name, value in told.items() if _differs(value, now.get(name))}


def _differs(before: object, now: object) -> bool:
    """Whether something is said otherwise now; what an earlier version did not say does not count."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return any(_differs(value, now.get(name)) for name, value in before.items() if name not in _SAID)
    if isinstance(before, list) and isinstance(now, list):
        return len(before) != len(now) or any(map(_differs, before, now))
    return before != now


def write(folder: Path, study: Study, records: Records, environments: Mapping[str, Any]) -> None:
    """Write all files of a study, each whole or not at all, sorted by optimizer, steps, seed and key.

    Where the study was defined otherwise when study.json was written before, that file keeps what it said
    under "changes": a study is fixed before its runs, and what was not is to be seen. Runs that the folder
    has and `records` have not are kept; those of optimizers that the study does not have any more stand
    behind the others.

    Raises:
        RecordError: If what the folder has is damaged; nothing is written then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    every = merged(read(folder), records)
    environments = {**read_environments(folder), **environments}
    content, path = study_to_json(study), folder / STUDY
    before = _content(path) or content
    order = [entry.name for entry in study.entries]
    order += sorted({record.entry for record in every.values()}.difference(order))
    known = sorted(
        every.values(),
        key=lambda record: (order.index(record.entry), record.seed, record.steps, record.key),
    )
    used = {record.environment for record in known}
    kept = {name: environments[name] for name in sorted(used) if name in environments}
    with replacing(folder / RUNS) as partial:
        partial.write_text("".join(json.dumps(record_to_json(record)) + "\n" for record in known), "utf-8")
    with replacing(folder / ENVIRONMENTS) as partial:
        partial.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    changes = [*before.get(CHANGES, []), *filter(None, [changed(before, content)])]
    with replacing(path) as partial:
        kept_changes = {CHANGES: changes} if changes else {}
        partial.write_text(json.dumps(content | kept_changes, indent=1) + "\n", "utf-8")
