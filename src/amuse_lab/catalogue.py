"""The lists that `amuse-lab list` prints: recipes, studies, data sets and optimizers."""

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import torch

from amuse_lab.config import RunConfig, TaskConfig
from amuse_lab.errors import ConfigError, DataError
from amuse_lab.files import data_root
from amuse_lab.optimizers import OPTIMIZERS
from amuse_lab.prepare import PREPARATIONS
from amuse_lab.recipes import RECIPES
from amuse_lab.studies.catalogue import STUDIES
from amuse_lab.tasks.image.data.sets import DATASETS as IMAGES
from amuse_lab.tasks.lm.bundled import BUNDLED


def catalogue(runs: Path = Path("runs")) -> dict[str, list[dict[str, Any]]]:
    """Collect recipes, studies, data sets and optimizers, in JSON's types.

    Args:
        runs: Where the runs of each recipe are counted.
    """
    return {
        "recipes": [_recipe(name, runs) for name in RECIPES],
        "studies": [{"name": name, "description": _first_line(made)} for name, made in STUDIES.items()],
        "datasets": [{"name": name, "description": text} for name, text in _datasets().items()],
        "optimizers": [{"name": name, "description": _first_line(kind)} for name, kind in OPTIMIZERS.items()],
    }


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def _datasets() -> dict[str, str]:
    """Data sets by name: those that `prepare` makes, those on board, and those of the user's own."""
    known = {
        **{name: each.description for name, each in PREPARATIONS.items()},
        **{name: each.description for name, each in BUNDLED.items()},
        **{name: each.description for name, each in IMAGES.items()},
    }
    prepared = sorted(path.parent.name for path in data_root().glob("*/index.json"))
    listed = sorted(path.parent.name for path in data_root().glob("*/images.json"))
    own = [(name, "text") for name in prepared] + [(name, "images") for name in listed]
    return known | {name: f"{kind} prepared here" for name, kind in own if name not in known}


def _recipe(name: str, runs: Path) -> dict[str, Any]:
    config = RECIPES[name]()
    return {
        "name": name,
        "description": _first_line(RECIPES[name]),
        "task": config.task.name,
        "optimizer": config.optimizer.name,
        "parameters": _parameters(config.task),
        "steps": config.steps,
        "data": config.task.data,
        "device": config.device,
        "missing": _missing(config),
        "runs_here": sum(1 for path in (runs / name).glob("*/config.json")),
    }


def _missing(config: RunConfig) -> list[str]:
    """What this machine lacks for a recipe: "data", "weights", "gpu"."""
    missing = []
    try:
        config.task.check(config.steps)
    except ConfigError:
        missing.append("weights")
    except DataError:
        missing.append("data")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        missing.append("gpu")
    return missing


@cache
def _parameters(task: TaskConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in task.build_model().parameters())


def describe(content: dict[str, list[dict[str, Any]]]) -> str:
    """Lay a catalogue out for people: a table of recipes, then a line for each other entry."""
    rows = [("recipe", "parameters", "steps", "data", "runs here")]
    rows += [
        (
            recipe["name"],
            f"{recipe['parameters'] / 1e6:,.1f} M",
            f"{recipe['steps']:,}",
            recipe["data"],
            f"no: {', '.join(recipe['missing'])}" if recipe["missing"] else "yes",
        )
        for recipe in content["recipes"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{name:{widths[0]}}  {size:>{widths[1]}}  {steps:>{widths[2]}}  {data:{widths[3]}}  {here}".rstrip()
        for name, size, steps, data, here in rows
    ]
    for kind, entries in content.items():
        if kind != "recipes" and entries:
            width = max(len(entry["name"]) for entry in entries)
            lines += [
                "",
                f"{kind}:",
                *(f"  {each['name']:{width}}  {each['description']}" for each in entries),
            ]
    lines += [
        "",
        "Any recipe: `amuse-lab train RECIPE --smoke` tries it in a minute, on data on board.",
        f"Prepared data lies in {data_root().absolute()}; `amuse-lab prepare --help` says how to get it.",
    ]
    return "\n".join(lines)
