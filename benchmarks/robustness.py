"""How far the loss moves when one setting is moved away from what the tuning chose.

python -m benchmarks.robustness           # makes the runs that are missing, and prints the table
python -m benchmarks.robustness 0         # makes those with seed 0 alone, beside another process with 1

Question: how sensitive is `AMUSE.anytime`, beside NorMuon with a cosine that was tuned for these steps, to
its settings and to the size of the batch? Trials: at 1,600 steps of `shakespeare-anytime`, with seeds 0 and
1, which are tuning seeds there, each change by itself from the point that the study chose; learning rates
of matrices and rest are moved together, and nothing is tuned again. Rule: the mean over both seeds of the
difference in loss to the unchanged run; no verdict.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from amuse_lab.optimizers import Amuse, Anytime, DMuon, NorMuon
from amuse_lab.studies.catalogue import find
from benchmarks.gpu.tables import table
from benchmarks.single_changes import losses

RECORD = Path(__file__).parents[1] / "records" / "robustness.jsonl"
STEPS, SEEDS = 1600, (0, 1)
PRESET = Anytime(lr=0.007766, lr_rest=0.006731, weight_decay=0.1281, lr_decay=0.488, warmup_steps=60)
COSINE = NorMuon(
    lr=0.01005,
    lr_rest=0.005916,
    weight_decay=0.2379,
    momentum=0.9179,
    split_qkv=True,
    warmup_steps=60,
)
FIRST = replace(
    PRESET,
    lr=0.006724,
    lr_rest=0.02105,
    weight_decay=0.02306,
    lr_decay=0.562,
    lr_decay_from=180,
    split_qkv=False,
    decaying="all",
)
MUON = DMuon(lr=0.007442, lr_rest=0.02213, weight_decay=0.1405, momentum=0.9508, beta1=0.9, warmup_steps=60)


def around(
    name: str, optimizer: Amuse | DMuon | NorMuon, own: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[Amuse | DMuon | NorMuon, int, Mapping[str, Any]]]:
    """Runs by their names: the optimizer, sequences in a batch, and what is changed of the optimizer."""
    assert optimizer.lr_rest is not None
    rates = {
        f"{name}, learning rates x {label}": {"lr": optimizer.lr * by, "lr_rest": optimizer.lr_rest * by}
        for label, by in (("1/2", 0.5), ("2", 2.0))
    }
    changes = rates | {f"{name}, {change}": options for change, options in own.items()}
    return {
        name: (optimizer, 16, {}),
        **{change: (optimizer, 16, options) for change, options in changes.items()},
        f"{name}, batch x 1/4": (optimizer, 4, {}),
        f"{name}, batch x 4": (optimizer, 64, {}),
    }


def of_preset(exponents: tuple[float, float], starts: tuple[int, int]) -> dict[str, dict[str, float]]:
    """What is changed of the preset alone: exponent and beginning of the decay, and the average."""
    return {
        **{f"exponent {a}": {"lr_decay": a} for a in exponents},
        **{f"decay from step {t}": {"lr_decay_from": t} for t in starts},
        **{f"r = {r}": {"r": float(r)} for r in (6, 27)},
    }


CHANGES = {
    **around("preset", PRESET, of_preset((0.35, 0.65), (180, 720))),
    **around("cosine", COSINE, {}),
    # Before it was found what should not decay; the cosine was Muon's.
    **around("first preset", FIRST, of_preset((0.4, 0.7), (60, 540))),
    **around("muon cosine", MUON, {}),
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seeds", nargs="*", type=int, help="seeds whose runs are made; none means all")
    seeds = parser.parse_args().seeds or SEEDS
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
