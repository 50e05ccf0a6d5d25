"""Going on with a run: which one, and with which config."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from amuse_lab import recipes
from amuse_lab.config import RunConfig, from_json, to_json
from amuse_lab.errors import ConfigError, RecordError, require

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
        RecordError: If it is not a run folder, or its config is not one of this version's.
    """
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        default = recipes.find(content["recipe"])(content["optimizer"]["name"])
        return replace(from_json(default, content), runs=folder.parent.parent)
    except OSError as error:
        raise RecordError(f"{folder} is not a run folder: {error.strerror}: config.json") from error
    except (ValueError, KeyError, TypeError) as error:
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

    Returns:
        Its folder, or None where there is none.
    """
    wanted = _experiment(to_json(config))
    # Folders are named by the time they began, but those of one second are only told apart by their files.
    found = (config.runs / config.recipe).glob("*/config.json")
    for file in sorted(found, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        summary = _read(file.with_name("summary.json"))
        if _experiment(_read(file)) == wanted and summary.get("status") != "finished":
            return file.parent
    return None


def _experiment(content: Mapping[str, Any]) -> dict[str, Any]:
    """All settings but the place, as JSON has them: tuples are lists there."""
    fields: dict[str, Any] = json.loads(json.dumps(content))
    fields.pop("runs", None)
    return fields


def _read(file: Path) -> dict[str, Any]:
    """A JSON file; nothing if there is none."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return content
