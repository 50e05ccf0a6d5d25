"""How far the loss moves when one setting is moved away from what the tuning chose.

python -m benchmarks.robustness           # makes the runs that are missing, and prints the table
python -m benchmarks.robustness 1         # makes those with seed 1 alone, beside another process

Question: how sensitive is `AMUSE.anytime`, beside Muon with a cosine that was tuned for these steps, to its
settings and to the size of the batch? Trials: at 1,600 steps of `shakespeare-anytime`, with seeds 0 and 1,
which are tuning seeds there, each change by itself from the point that the study chose; learning rates of
matrices and rest are moved together, and nothing is tuned again. Rule: the mean over both seeds of the
difference in loss to the unchanged run; no verdict.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from amuse_lab.optimizers import Amuse, DMuon
from amuse_lab.studies.catalogue import find
from benchmarks.gpu.tables import table
from benchmarks.single_changes import losses

RECORD = Path(__file__).parents[1] / "records" / "robustness.jsonl"
STEPS, SEEDS = 1600, (0, 1)
PRESET = Amuse(
    lr_decay_from=180,
    lr=0.006724,
    lr_rest=0.02105,
    weight_decay=0.02306,
    lr_decay=0.562,
    matrices="normuon",
    warmup_steps=60,
    beta1=0.0,
    rho=0.0,
    r=13.0,
    momentum=0.9,
    auxiliary_momentum=0.9,
)
COSINE = DMuon(lr=0.007442, lr_rest=0.02213, weight_decay=0.1405, momentum=0.9508, beta1=0.9, warmup_steps=60)
# Optimizer, sequences in a batch, and what is changed of the optimizer.
CHANGES: Mapping[str, tuple[Amuse | DMuon, int, Mapping[str, Any]]] = {
    "preset": (PRESET, 16, {}),
    "preset, learning rates x 1/2": (PRESET, 16, {"lr": 0.003362, "lr_rest": 0.010525}),
    "preset, learning rates x 2": (PRESET, 16, {"lr": 0.013448, "lr_rest": 0.0421}),
    "preset, batch x 1/4": (PRESET, 4, {}),
    "preset, batch x 4": (PRESET, 64, {}),
    "preset, exponent 0.4": (PRESET, 16, {"lr_decay": 0.4}),
    "preset, exponent 0.7": (PRESET, 16, {"lr_decay": 0.7}),
    "preset, decay from step 60": (PRESET, 16, {"lr_decay_from": 60}),
    "preset, decay from step 540": (PRESET, 16, {"lr_decay_from": 540}),
    "preset, r = 6": (PRESET, 16, {"r": 6.0}),
    "preset, r = 27": (PRESET, 16, {"r": 27.0}),
    "cosine": (COSINE, 16, {}),
    "cosine, learning rates x 1/2": (COSINE, 16, {"lr": 0.003721, "lr_rest": 0.011065}),
    "cosine, learning rates x 2": (COSINE, 16, {"lr": 0.014884, "lr_rest": 0.04426}),
    "cosine, batch x 1/4": (COSINE, 4, {}),
    "cosine, batch x 4": (COSINE, 64, {}),
}


def measure(name: str, seed: int) -> float:
    """The loss at x after all steps."""
    run = find("shakespeare-anytime").run
    optimizer, batch, changed = CHANGES[name]
    task = replace(run.task, batch=batch)
    config = replace(run, task=task, optimizer=replace(optimizer, **changed), seed=seed, steps=STEPS)
    return losses(config, (STEPS,))[STEPS]


def main() -> None:
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []
    found = {(line["run"], line["seed"]): line["loss"] for line in lines}
    seeds = [int(seed) for seed in sys.argv[1:]] or SEEDS
    for seed in seeds:
        for name in CHANGES:
            if (name, seed) not in found:
                found[name, seed] = measure(name, seed)
                with RECORD.open("a") as file:
                    file.write(json.dumps({"run": name, "seed": seed, "loss": found[name, seed]}) + "\n")
    rows = []
    for name in CHANGES if tuple(seeds) == SEEDS else ():
        mean = sum(found[name, seed] for seed in SEEDS) / len(SEEDS)
        usual = sum(found[name.partition(",")[0], seed] for seed in SEEDS) / len(SEEDS)
        rows.append([name, f"{mean:.3f}", f"{mean - usual:+.3f}"])
    print(table(["run", "loss", "difference"], rows))


if __name__ == "__main__":
    main()
