"""Recorded results that a recipe ships, to be printed beside a new run."""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from amuse_lab.config import RunConfig, to_json
from amuse_lab.recipes import find


@dataclass(frozen=True)
class Result:
    """Recorded results of one optimizer.

    Attributes:
        optimizer: Name of the optimizer, as on the command line.
        lr: Peak learning rate of the runs.
        mean: Mean over seeds of the recipe's measure, at x, on all validation data.
        spread: Standard deviation of the same value over the seeds.
        seeds: Seeds of the runs.
    """

    optimizer: str
    lr: float
    mean: float
    spread: float
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Reference:
    """The recorded results of a recipe.

    Attributes:
        steps: How long the recorded runs were.
        machine: What they ran on, in words.
        results: Results of each optimizer, in the order in which they are printed.
    """

    steps: int
    machine: str
    results: tuple[Result, ...]


def load_reference(recipe: str, measure: str) -> Reference | None:
    """Read `<recipe>_reference.json`, which lies beside this module.

    The file holds "steps", "machine" and "results": a list of objects with "optimizer", "lr",
    "<measure>_mean", "spread" and "seeds" (a list).

    Args:
        recipe: Name of the recipe; its dashes are underscores in the name of the file.
        measure: Name of the value that its task is judged by, such as "bits_per_byte".

    Returns:
        None for a recipe without recorded results.
    """
    file = files("amuse_lab.recipes") / f"{recipe.replace('-', '_')}_reference.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    results = tuple(
        Result(
            optimizer=result["optimizer"],
            lr=result["lr"],
            mean=result[f"{measure}_mean"],
            spread=result["spread"],
            seeds=tuple(result["seeds"]),
        )
        for result in content["results"]
    )
    return Reference(steps=content["steps"], machine=content["machine"], results=results)


def comparable_results(config: RunConfig, measure: str) -> Reference | None:
    """Return the recorded results that stand for the same task and the same length as a run.

    Args:
        config: Config of the run that they are to stand beside.
        measure: Name of the value that its task is judged by, such as "bits_per_byte".

    Returns:
        None where there are none: the run has other data, another model or batch, another number of steps,
        another precision or clipping than the recipe.
    """
    reference = load_reference(config.recipe, measure)
    if reference is None or config.steps != reference.steps:
        return None
    alike = _decisive(config) == _decisive(find(config.recipe)())
    return reference if alike else None


def _decisive(config: RunConfig) -> dict[str, Any]:
    """What two runs must have in common for their results to be compared."""
    task = {name: value for name, value in to_json(config)["task"].items() if name not in config.task.free}
    return {"task": task, "precision": config.precision, "clip": config.clip}
