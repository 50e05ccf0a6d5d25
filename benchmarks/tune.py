"""Tune the optimizers of a recipe with the same number of trials each, and record every one.

    python benchmarks/tune.py shakespeare records/shakespeare --workers 2

The rule, fixed before the runs: six trials an optimizer, a grid of three learning rates and two values of
the setting that matters most beside it, seed 0; the trial with the lowest loss at x on all validation data
wins; then the winner's settings run with seeds 1, 2 and 3, and these are reported. Each run has one thread.
Recorded runs are not repeated. README.md of each record says what was known before.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Grid = Mapping[str, tuple[float, ...]]

SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Study:
    """What is tried on a recipe.

    Attributes:
        loss: What decides, of the numbers of a run's summary.
        measure: What is reported beside it.
        grids: The values that are tried, by optimizer and setting.
    """

    loss: str
    measure: str
    grids: Mapping[str, Grid]


STUDIES: Mapping[str, Study] = {
    "shakespeare": Study(
        loss="bits_per_byte",
        measure="bits_per_byte",
        grids={
            # The third lr of amuse and muon was first 0.04; it was replaced before it ran, as 0.02 was
            # already worse than 0.01 for both.
            "amuse": {"lr": (0.01, 0.02, 0.005), "t0_steps": (320, 640)},
            "sf-adamw": {"lr": (0.005, 0.01, 0.02), "beta1": (0.9, 0.95)},
            "muon": {"lr": (0.01, 0.02, 0.005), "lr_rest": (0.003, 0.008)},
            "adamw": {"lr": (0.002, 0.004, 0.008), "weight_decay": (0.0, 0.1)},
        },
    ),
    "mnist-resnet8": Study(
        loss="val_loss",
        measure="val_accuracy",
        grids={
            "amuse": {"lr": (0.05, 0.1, 0.2), "t0_steps": (120, 240)},
            "muon-sgd": {"lr": (0.01, 0.02, 0.05), "lr_rest": (0.01, 0.1)},
            "sf-sgd": {"lr": (0.5, 1.5, 5.0), "weight_decay": (1e-4, 1e-3)},
            "sgd": {"lr": (0.05, 0.1, 0.2), "weight_decay": (1e-4, 1e-3)},
            "adamw": {"lr": (0.003, 0.006, 0.012), "weight_decay": (0.01, 0.1)},
        },
    ),
    "mnist-vit": Study(
        loss="val_loss",
        measure="val_accuracy",
        grids={
            "amuse": {"lr": (0.01, 0.02, 0.04), "t0_steps": (160, 320)},
            # The last two were added when the largest of the first three was the best by far.
            "adamw": {"lr": (0.001, 0.002, 0.004, 0.008, 0.016), "weight_decay": (0.01, 0.1)},
        },
    ),
}


def run(recipe: str, kept: set[str], optimizer: str, settings: dict[str, float], seed: int) -> dict[str, Any]:
    """One run in a process of its own; returns what there is to record of it."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "amuse_lab", "train", recipe, "--optimizer", optimizer]
        command += ["--seed", str(seed), "--threads", "1", "--runs", runs]
        for name, value in settings.items():
            command += [f"--optimizer.{name.replace('_', '-')}", str(value)]
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        record: dict[str, Any] = {"optimizer": optimizer, "settings": settings, "seed": seed}
        folders = list(Path(runs).glob(f"{recipe}/*/summary.json"))
        if not folders:
            raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr}")
        summary = json.loads(folders[0].read_text())
        numbers = {name: summary[name] for name in summary if name in kept}
        environment = json.loads((folders[0].parent / "env.json").read_text())
        return record | numbers | {"versions": environment["versions"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=STUDIES)
    parser.add_argument("folder", type=Path, help="where trials.jsonl and reference.json are kept")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--machine", default="unnamed", help="what the runs were made on, in words")
    arguments = parser.parse_args()
    study = STUDIES[arguments.recipe]
    decisive = sorted({study.loss, study.measure})
    kept = {"steps", "tokens", "seconds", "status", *decisive, *(f"{name}_y" for name in decisive)}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "trials.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def all_of(wanted: list[tuple[str, dict[str, float], int]]) -> None:
        known = [(r["optimizer"], r["settings"], r["seed"]) for r in records]
        missing = [request for request in wanted if request not in known]
        with ThreadPoolExecutor(arguments.workers) as pool, path.open("a") as file:
            for record in pool.map(lambda request: run(arguments.recipe, kept, *request), missing):
                records.append(record)
                file.write(json.dumps(record) + "\n")
                file.flush()
                print(json.dumps(record), flush=True)

    trials = [
        (optimizer, dict(zip(grid, values, strict=True)), 0)
        for optimizer, grid in study.grids.items()
        for values in itertools.product(*grid.values())
    ]
    all_of(trials)
    best = {
        optimizer: min(
            (r for r in records if r["optimizer"] == optimizer and r["seed"] == 0),
            key=lambda r: r[study.loss] if r["status"] == "finished" else float("inf"),
        )["settings"]
        for optimizer in study.grids
    }
    all_of([(optimizer, best[optimizer], seed) for seed in SEEDS for optimizer in study.grids])

    results = []
    for optimizer, settings in best.items():
        runs = [
            r
            for r in records
            if (r["optimizer"], r["settings"]) == (optimizer, settings) and r["seed"] in SEEDS
        ]
        ends = {name: [r[name] for r in runs] for name in decisive}
        results.append(
            {
                "optimizer": optimizer,
                **settings,
                **{f"{name}_mean": round(statistics.mean(values), 4) for name, values in ends.items()},
                "spread": round(statistics.stdev(ends[study.measure]), 4),
                "seeds": list(SEEDS),
            }
        )
    reference = {"steps": records[0]["steps"], "machine": arguments.machine, "results": results}
    (arguments.folder / "reference.json").write_text(json.dumps(reference, indent=2) + "\n")


if __name__ == "__main__":
    main()
