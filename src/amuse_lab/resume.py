"""Going on with a run: which one, and with which config."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from amuse_lab import recipes
from amuse_lab.config import RunConfig, from_json, to_json
from amuse_lab.errors import ConfigError, DataError, RecordError, require
from amuse_lab.records import check_is_file

_FREE = (
    *("steps", "micro_batch", "compile", "checkpoint_every", "keep_last", "keep_every"),
    *("sinks", "threads", "device", "task.workers"),
)
"""Settings that may change in the middle of a run; no other may."""

_ENDLESS = ("constant", "none")
"""Schedules that do not depend on how long the run is."""


def saved_config(folder: Path) -> RunConfig:
    """Read the config of a run folder.

    Raises:
        DataError: If its config.json is no file.
        RecordError: If it is not a run folder, or its config is not one of this version's.
    """
    try:
        check_is_file(folder / "config.json")
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        default = recipes.find(content["recipe"])(content["optimizer"]["name"])
        return replace(from_json(default, content), runs=folder.parent.parent)
    except OSError as error:
        raise RecordError(f"{folder} is not a run folder: {error.strerror}: config.json") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordError(f"cannot go on with {folder}: config.json: {error}") from error


def check_changes(saved: RunConfig, wanted: RunConfig) -> None:
    """Check that a run may go on with another config than it began with.

    Raises:
        ConfigError: For a setting that has to stay as it was, and for more steps where the learning-rate
            schedule was made for fewer.
    """
    before, after = to_json(saved), to_json(wanted)
    for name, old, new in _differences(before, after):
        if name not in _FREE:
            raise must_stay(name, old, new)
    schedule = getattr(wanted.optimizer, "schedule", None)
    if schedule is not None and schedule not in _ENDLESS:
        name, steps = wanted.optimizer.name, saved.steps
        constraint = f"the {steps} that the {schedule} schedule of {name} ends with"
        require(wanted.steps == steps, "steps", constraint, wanted.steps)


def must_stay(name: str, old: object, new: object) -> ConfigError:
    """Return the error for a setting that may not change in the middle of a run."""
    return ConfigError(f"{name} must stay {old!r} when a run goes on, got {new!r}; start a new run")


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name, old in before.items():
        new = after[name]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield prefix + name, old, new


def newest_unfinished(config: RunConfig) -> Path | None:
    """Find the newest run of a config, every setting but `runs` alike, that has not finished.

    Runs whose config or summary is damaged are passed over.

    Returns:
        Its folder, or None where there is none.
    """
    wanted = _experiment(to_json(config))
    # Folders are named by the time they began, but those of one second are only told apart by their files.
    found = (config.runs / config.recipe).glob("*/config.json")
    for file in sorted(found, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        summary = file.with_name("summary.json")
        ended = summary.exists() and _read(summary).get("status", "finished") == "finished"
        if _experiment(_read(file)) == wanted and not ended:
            return file.parent
    return None


def _experiment(content: Mapping[str, Any]) -> dict[str, Any]:
    """All settings but the place, as JSON has them: tuples are lists there."""
    fields: dict[str, Any] = json.loads(json.dumps(content))
    fields.pop("runs", None)
    return fields


def _read(file: Path) -> dict[str, Any]:
    """An object in a JSON file; an empty one if the file is missing or damaged."""
    try:
        check_is_file(file)
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, DataError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
