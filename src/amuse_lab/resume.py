"""Going on with a run: which one, with which config, and what may have changed since."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amuse_lab import recipes
from amuse_lab.config import RunConfig, TaskConfig, from_json, hash_of, to_json
from amuse_lab.errors import ConfigError, DataError, RecordError, require
from amuse_lab.files import check_is_file

HISTORY = "history"
"""The key of config.json that lists changes in the middle of the run."""

ADDED = "added"
"""The key of a change that lists settings which the version before did not have."""

_FREE = (
    *("steps", "micro_batch", "compile", "eval_every", "log_every", "checkpoint_every", "keep_last"),
    *("keep_every", "sinks", "threads", "device"),
)
"""Settings that affect no later training step, besides those that the task lists in `free`."""

_FROM_HERE = ("optimizer.lr", "optimizer.lr_rest")
"""Settings that may change for the steps to come if the user says so."""

_REASONS = {
    "seed": "it decides what the steps to come see",
    "precision": "weights and state are kept in it",
    "parallel": "weights and state are divided by it",
    "clip": "the steps so far were clipped by it",
    "optimizer": "its state belongs to it",
    "optimizer.": "the steps so far were taken with it",
    "task.": "the steps so far were taken on it",
}
"""Why a setting, or every one that begins so, has to stay."""

_ENDLESS = ("constant", "none")
"""Schedules that do not depend on how long the run is."""

Changes = Mapping[str, tuple[Any, Any]]
"""Old and new value by the dotted name of a setting."""


def saved_config(folder: Path) -> RunConfig:
    """Read the config of a run folder.

    Raises:
        DataError: If its config.json is no file.
        RecordError: If it is not a run folder, its config is not one of this version's, or the file has been
            edited since the run began.
    """
    try:
        content = _content(folder)
        history = content.pop(HISTORY, [])
        config = replace(_config_in(content), runs=folder.parent.parent)
        began = hash_of(_undone(content, history))
    except OSError as error:
        raise RecordError(
            f"{folder} is not a run folder: {error.strerror}: config.json; runs lie in runs/RECIPE/TIME-HASH"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(f"cannot go on with {folder}: config.json: {error}") from error
    named = re.search(r"Z-([0-9a-f]{8})(-\d+)?$", folder.resolve().name)
    if named and named[1] != began:
        raise RecordError(
            f"{folder / 'config.json'} has been edited: its settings are not those that the folder is named "
            "for; undo that, and change settings on the command line or in a new run"
        )
    return config


def _config_in(content: Mapping[str, Any]) -> RunConfig:
    """The config that a config.json holds."""
    default = recipes.find(content["recipe"])(content["optimizer"]["name"])
    return from_json(default, {name: value for name, value in content.items() if name != HISTORY})


def _content(folder: Path) -> dict[str, Any]:
    check_is_file(folder / "config.json")
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content


def _undone(content: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that a run began with."""
    original: dict[str, Any] = json.loads(json.dumps(content))
    for entry in reversed(history):
        for name, (old, _) in entry["changes"].items():
            place, last = _place(original, name)
            place[last] = old
        for name in entry.get(ADDED, ()):
            place, last = _place(original, name)
            del place[last]
    return original


def _place(content: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The object that holds a setting, and the setting's name in it."""
    *path, last = name.split(".")
    for key in path:
        content = content[key]
    return content, last


def changes_of(folder: Path, config: RunConfig) -> Changes:
    """Return the settings of a config that differ from those in a run folder, which may lack some (None)."""
    content = _content(folder)
    content.pop(HISTORY, None)
    wanted = json.loads(json.dumps(to_json(config)))
    return {name: (old, new) for name, old, new in _differences(content, wanted) if name != "runs"}


def changed_since(folder: Path, config: RunConfig, step: int) -> set[str]:
    """Return the dotted names of the settings that are not what they were when a checkpoint was written.

    Args:
        folder: The run folder, whose config.json tells which settings were changed, and after which step.
        config: Config of the steps to come.
        step: Training steps done when the checkpoint was written.
    """
    later = (entry for entry in _content(folder).get(HISTORY, []) if entry["from_step"] >= step)
    return {*changes_of(folder, config), *(name for entry in later for name in entry["changes"])}


def with_history(folder: Path, config: RunConfig, step: int) -> dict[str, Any]:
    """Return what config.json says from a step on: the config, and every change of it in the order made.

    Args:
        folder: The run folder, with the config so far.
        config: Config of the steps to come.
        step: Training steps done so far.
    """
    content = _content(folder)
    history = list(content.pop(HISTORY, []))
    changes = changes_of(folder, config)
    added = list(_added(content, json.loads(json.dumps(to_json(config)))))
    changed = {name: list(pair) for name, pair in changes.items() if name not in added}
    if changed or added:
        history.append({"from_step": step, "changes": changed} | ({ADDED: added} if added else {}))
    return to_json(config) | ({HISTORY: history} if history else {})


def _added(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings that a newer version has added."""
    for name, new in after.items():
        if name not in before:
            yield prefix + name
        elif isinstance(before[name], Mapping) and isinstance(new, Mapping):
            yield from _added(before[name], new, f"{prefix}{name}.")


def check_changes(saved: RunConfig, wanted: RunConfig, *, from_here: bool = False) -> None:
    """Check that a run may go on with another config than it began with.

    Args:
        saved: Config of the steps so far, from the run folder.
        wanted: Config of the steps to come.
        from_here: Whether the learning rate may change for the steps to come, as `--from-here` asks.

    Raises:
        ConfigError: For a setting that has to stay as it was, and for more steps where the learning-rate
            schedule was made for fewer.
    """
    for name, old, new in _differences(to_json(saved), to_json(wanted)):
        if is_free(name, wanted.task):
            continue
        if not (from_here and name in _FROM_HERE):
            raise must_stay(name, old, new)
        constraint = "None or a number as before: parameter groups are made by it"
        require((old is None) == (new is None), name, constraint, new)
    schedule = getattr(wanted.optimizer, "schedule", None)
    if schedule is not None and schedule not in _ENDLESS:
        name, steps = wanted.optimizer.name, saved.steps
        constraint = f"the {steps} that the {schedule} schedule of {name} ends with"
        require(wanted.steps == steps, "steps", constraint, wanted.steps)


def is_free(name: str, task: TaskConfig) -> bool:
    """Return True if a setting, by its dotted name, changes no step to come."""
    return name in _FREE or name.removeprefix("task.") in task.free


def must_stay(name: str, old: object, new: object) -> ConfigError:
    """Return the error for a setting that may not change in the middle of a run."""
    reason = next((why for begin, why in _REASONS.items() if name == begin), None) or next(
        (why for begin, why in _REASONS.items() if begin.endswith(".") and name.startswith(begin)),
        "the run is named for it",
    )
    hint = "--from-here changes it for the steps to come" if name in _FROM_HERE else "start a new run"
    return ConfigError(f"{name} must stay {old!r} when a run goes on, got {new!r}: {reason}; {hint}")


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name, new in after.items():
        old = before.get(name)
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
    wanted = _settings(config)
    # Folders are named by the time they began, but those of one second are only told apart by their files.
    found = (config.runs / config.recipe).glob("*/config.json")
    for file in sorted(found, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        summary = file.with_name("summary.json")
        ended = summary.exists() and _read(summary).get("status", "finished") == "finished"
        if _experiment(_read(file)) == wanted and not ended:
            return file.parent
    return None


def _experiment(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config.json, as `_settings` has them; empty if it is damaged.

    Settings that the version which wrote it did not have are the recipe's.
    """
    try:
        return _settings(_config_in(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _settings(config: RunConfig) -> dict[str, Any]:
    """All settings but the place, as JSON has them, where tuples are lists."""
    settings: dict[str, Any] = json.loads(json.dumps(to_json(config)))
    del settings["runs"]
    return settings


def _read(file: Path) -> dict[str, Any]:
    """An object in a JSON file; an empty one if the file is missing or damaged."""
    try:
        check_is_file(file)
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, DataError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
