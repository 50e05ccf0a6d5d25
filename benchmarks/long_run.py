"""Four times as far as `shakespeare-anytime` goes, with a smaller model: 12,800 steps at a width of 32.

python -m benchmarks.long_run           # makes the runs that are missing, and prints the table
python -m benchmarks.long_run 0 2       # makes every second of them, beside another process with 1 2

Question: `AMUSE.anytime` as the study chose it for up to 3,200 steps, on the way to 12,800: is it as good
as NorMuon with a cosine that ends at 3,200 or 12,800? Trials: the settings that the study chose for each
(for the cosine those of 3,200 steps), and the same with both learning rates halved, with seeds 0, 1 and 2;
nothing is tuned again, and Shakespeare's plays are read about six times. Rule: for each the learning rates
with the lower mean, for the cosine at each horizon; the mean over the seeds of the difference, with a 95 %
t-interval.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from amuse_lab.studies.catalogue import find
from benchmarks import share
from benchmarks.gpu.tables import table
from benchmarks.robustness import COSINE, PRESET
from benchmarks.single_changes import losses

RECORD = Path(__file__).parents[1] / "records" / "long_run.jsonl"
HORIZONS, SEEDS = (3200, 12_800), (0, 1, 2)
# Optimizer, by how much its learning rates are multiplied, and the steps of each run.
RUNS: Mapping[str, tuple[Any, float, tuple[int, ...]]] = {
    "preset": (PRESET, 1.0, HORIZONS[-1:]),
    "preset, learning rates x 1/2": (PRESET, 0.5, HORIZONS[-1:]),
    "cosine": (COSINE, 1.0, HORIZONS),
    "cosine, learning rates x 1/2": (COSINE, 0.5, HORIZONS),
}


def measure(name: str, steps: int, seed: int) -> dict[str, Any]:
    """The loss at x at the horizons that the run passes, or at its end under a schedule."""
    run = find("shakespeare-anytime").run
    model = replace(run.task.model, n_embd=32)
    optimizer, by, _ = RUNS[name]
    optimizer = replace(optimizer, lr=by * optimizer.lr, lr_rest=by * optimizer.lr_rest)
    config = replace(run, task=replace(run.task, model=model), optimizer=optimizer, seed=seed, steps=steps)
    read = HORIZONS if name.startswith("preset") else (steps,)
    return {"run": name, "steps": steps, "seed": seed, "loss": losses(config, read)}


def read() -> list[dict[str, Any]]:
    """The runs that have been made."""
    return [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []


def main() -> None:
    torch.set_num_threads(1)
    mine = share.read(str(__doc__))
    done = {(line["run"], line["steps"], line["seed"]) for line in read()}
    wanted = [(name, steps, seed) for seed in SEEDS for name in RUNS for steps in reversed(RUNS[name][2])]
    for one in [one for one in wanted[mine] if one not in done]:
        line = json.dumps(measure(*one))
        with RECORD.open("a") as file:
            file.write(line + "\n")
    found = {
        (line["run"], int(horizon), line["seed"]): loss
        for line in read()
        for horizon, loss in line["loss"].items()
    }
    rows, best = [], {}
    for name in RUNS:
        means = [np.mean([found.get((name, h, seed), np.nan) for seed in SEEDS]) for h in HORIZONS]
        rows.append([name, *(f"{mean:.4f}" for mean in means)])
        for h, mean in zip(HORIZONS, means, strict=True):
            kind = name.partition(",")[0]
            best[kind, h] = min(best.get((kind, h), (np.inf, name)), (mean, name))
    chosen = min(
        ("preset", "preset, learning rates x 1/2"),
        key=lambda name: sum(found.get((name, h, seed), np.inf) for h in HORIZONS for seed in SEEDS),
    )
    cells = []
    for h in HORIZONS:
        pairs = [(found.get((chosen, h, seed)), found.get((best["cosine", h][1], h, seed))) for seed in SEEDS]
        gaps = [a - b for a, b in pairs if a is not None and b is not None]
        half = (
            stats.t.ppf(0.975, len(gaps) - 1) * np.std(gaps, ddof=1) / np.sqrt(len(gaps))
            if len(gaps) > 1
            else np.nan
        )
        cells.append(f"{np.mean(gaps):+.4f} ± {half:.4f}" if gaps else "-")
    rows.append([f"{chosen}, to the better cosine", *cells])
    print(table(["loss at x, mean of three seeds", *(f"{h:,}" for h in HORIZONS)], rows))


if __name__ == "__main__":
    main()
