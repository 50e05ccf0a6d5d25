"""What there is to choose from."""

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import torch

from amuse_lab.config import TaskConfig
from amuse_lab.optimizers import OPTIMIZERS
from amuse_lab.prepare import PREPARATIONS
from amuse_lab.recipes import RECIPES
from amuse_lab.tasks.image.data.sets import DATASETS as IMAGES
from amuse_lab.tasks.lm.data import DATASETS as TEXTS


def catalogue(runs: Path = Path("runs")) -> dict[str, list[dict[str, Any]]]:
    """Collect recipes, studies, data sets and optimizers, in JSON's types.

    Args:
        runs: Where the runs of each recipe are counted.
    """
    return {
        "recipes": [_recipe(name, runs) for name in RECIPES],
        "studies": [],
        "datasets": [{"name": name, "description": text} for name, text in _datasets().items()],
        "optimizers": [{"name": name, "description": _first_line(kind)} for name, kind in OPTIMIZERS.items()],
    }


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def _datasets() -> dict[str, str]:
    """Data sets by name: those that `prepare` makes, and those on board, which need no preparation."""
    return {
        **{name: each.description for name, each in PREPARATIONS.items()},
        **{name: each.description for name, each in TEXTS.items()},
        **{name: each.description for name, each in IMAGES.items()},
    }


def _recipe(name: str, runs: Path) -> dict[str, Any]:
    config = RECIPES[name]()
    return {
        "name": name,
        "description": _first_line(RECIPES[name]),
        "task": config.task.name,
        "optimizer": config.optimizer.name,
        "parameters": _parameters(config.task),
        "steps": config.steps,
        "runs_here": sum(1 for path in (runs / name).glob("*/config.json")),
    }


@cache
def _parameters(task: TaskConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in task.build_model().parameters())


def describe(content: dict[str, list[dict[str, Any]]]) -> str:
    """Lay a catalogue out for people, one line an entry."""
    lines: list[str] = []
    for kind, entries in content.items():
        lines += ["", f"{kind}:"] if lines else [f"{kind}:"]
        width = max((len(entry["name"]) for entry in entries), default=0)
        lines += [f"  {entry['name']:{width}}  {entry['description']}" for entry in entries] or ["  none"]
    return "\n".join(lines)
