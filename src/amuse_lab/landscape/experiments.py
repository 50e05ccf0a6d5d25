"""The runs of the claims: which are missing, and their records in one folder."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from amuse_lab.config import RunConfig
from amuse_lab.config import from_json as config_from_json
from amuse_lab.config import to_json as config_to_json
from amuse_lab.errors import ConfigError, RecordError
from amuse_lab.files import replacing
from amuse_lab.landscape import claims
from amuse_lab.landscape.recorded import Recorded, from_json, to_json
from amuse_lab.landscape.running import live
from amuse_lab.studies.measuring import surroundings

RUNS = "runs.jsonl"
ENVIRONMENTS = "environments.json"
CLAIMS = "claims.json"


def read(folder: Path) -> list[Recorded]:
    """Read the records of a folder; none if it has none.

    Raises:
        RecordError: If a line is damaged.
    """
    path = folder / RUNS
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines() if path.exists() else (), start=1):
        try:
            found.append(from_json(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordError(f"{path}, line {number}: not the record of a run: {error}") from error
    return found


def read_environments(folder: Path) -> dict[str, Any]:
    """Read the environments of a folder by their hashes."""
    path = folder / ENVIRONMENTS
    content: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return content


def definition() -> dict[str, Any]:
    """Return what was fixed before the runs, in JSON's types."""
    return {
        "rule": claims.RULE,
        "claims": [
            {"claim": each.text, "optimizers": each.optimizers, "effects": list(each.effects)}
            for each in claims.CLAIMS
        ],
        "measured_at": claims.MEASURED_AT,
        "seeds": claims.SEEDS,
        "settings": asdict(claims.SETTINGS),
        "river": asdict(claims.RIVER),
        "runs": [
            {"setting": setting, "name": name} | _deciding(config_to_json(config))
            for (setting, name), config in claims.runs().items()
        ],
    }


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the steps of a run, but for its seed."""
    names = ("recipe", "task", "optimizer", "steps", "clip", "precision", "threads", "device")
    return {name: value for name, value in config.items() if name in names}


def missing(records: list[Recorded]) -> list[tuple[str, str, RunConfig]]:
    """Return the runs that the records lack, all optimizers with one seed before the next seed.

    A run is known by what decides its steps, its seed and how much was measured. A setting that there was not
    yet when it was made has the value that it has now.
    """
    runs = claims.runs()
    known = set()
    for each in records:
        if (each.setting, each.name) in runs:
            try:
                config = config_from_json(runs[each.setting, each.name], each.config)
            except ConfigError:  # of a version that had other settings
                continue
            decides = _deciding(config_to_json(config))
            known.add(json.dumps([each.setting, each.name, each.seed, decides, each.settings]))
    wanted = []
    for seed in claims.SEEDS:
        for (setting, name), plain in runs.items():
            config = replace(plain, seed=seed)
            decides = _deciding(config_to_json(config))
            if json.dumps([setting, name, seed, decides, asdict(claims.SETTINGS)]) not in known:
                wanted.append((setting, name, config))
    return wanted


def make(folder: Path, say: Callable[[str], None]) -> list[Recorded]:
    """Make the runs that the records of a folder lack, in as many sittings as it takes.

    Args:
        folder: Where the records are; each run is written when it has ended.
        say: Called with a line now and then.

    Returns:
        All records.

    Raises:
        RecordError: If the runs of the folder were made with another river test, which their records do not
            have, or a line is damaged.
    """
    text = json.dumps(definition(), indent=1) + "\n"
    decided = folder / CLAIMS
    if decided.exists() and json.loads(decided.read_text("utf-8"))["river"] != json.loads(text)["river"]:
        raise RecordError(f"{decided} has another river test than is wanted now: take another folder, --out")
    folder.mkdir(parents=True, exist_ok=True)
    _write(decided, text)
    wanted = missing(read(folder))
    for number, (setting, name, config) in enumerate(wanted, start=1):
        recorded = live(
            config, claims.MEASURED_AT, claims.SETTINGS, claims.RIVER, name=name, setting=setting, say=say
        )
        environments = read_environments(folder) | {recorded.environment: surroundings(config)}
        _write(folder / ENVIRONMENTS, json.dumps(environments, indent=1) + "\n")
        write(folder, [*read(folder), recorded])
        say(f"run {number} of {len(wanted)}: {recorded.seconds:.0f} s")
    return read(folder)


def write(folder: Path, records: list[Recorded]) -> None:
    """Write records, sorted by setting, name and seed."""
    order = sorted(records, key=lambda each: (each.setting, each.name, each.seed))
    _write(folder / RUNS, "".join(json.dumps(to_json(each)) + "\n" for each in order))


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, "utf-8")
