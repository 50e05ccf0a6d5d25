"""Single changes of `AMUSE.anytime` on `shakespeare-anytime`: what moves the loss at each horizon.

python -m benchmarks.single_changes muon:0 normuon:0   # adds runs, with their seeds, to records/levers.jsonl
python -m benchmarks.single_changes                    # prints the table

A pilot for choosing what the study tunes: one setting each, seeds 0 and 1, which are tuning seeds there, and
no rule fixed beforehand.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from amuse_lab.config import RunConfig
from amuse_lab.optimizers import Amuse
from amuse_lab.parallel import ALONE
from amuse_lab.studies.catalogue import find
from amuse_lab.trainer import Trainer
from benchmarks.gpu.tables import table

RECORD = Path(__file__).parents[1] / "records" / "levers.jsonl"
HIGH = {"lr": 0.0102, "lr_rest": 0.0295, "weight_decay": 0.0353, "lr_decay": 0.574}
LOW = {"lr": 0.0062, "lr_rest": 0.0091, "weight_decay": 0.0387, "lr_decay": 0.52}
NORMUON = {"matrices": "normuon"}
# What the study chose.
CHOSEN = {"lr": 0.006724, "lr_rest": 0.02105, "weight_decay": 0.02306, "lr_decay": 0.562} | NORMUON
# "rest" are options of what AdamW moves. "growth" p is no option of the optimizer: momentum
# 1 - 0.1 min(1, (180 / t)^p), of matrices or of all.
LEVERS: Mapping[str, Mapping[str, Any]] = {
    "muon": HIGH,
    "muon, decay 0.1": HIGH | {"weight_decay": 0.1},
    "muon, lr_rest 0.01": HIGH | {"lr_rest": 0.01},
    "muon, growth 0.5": HIGH | {"growth": 0.5},
    "muon, growth 0.5 of all": HIGH | {"growth": 0.5, "of_all": True},
    "normuon": HIGH | NORMUON,
    "normuon, low": LOW | NORMUON,
    "normuon, low, decay 0.1": LOW | NORMUON | {"weight_decay": 0.1},
    "normuon, low, lr_rest 0.02": LOW | NORMUON | {"lr_rest": 0.02},
    "normuon, low, beta1 0.4": LOW | NORMUON | {"beta1": 0.4},
    "normuon, low, growth 0.5": LOW | NORMUON | {"growth": 0.5},
    "normuon, low, growth 0.8": LOW | NORMUON | {"growth": 0.8},
    "normuon, low, growth 0.5 of all": LOW | NORMUON | {"growth": 0.5, "of_all": True},
    "normuon, lr 0.004": LOW | NORMUON | {"lr": 0.004, "lr_decay": 0.45},
    "normuon, lr 0.0045, growth 0.5 of all": NORMUON
    | {"lr": 0.0045, "lr_rest": 0.015, "weight_decay": 0.1, "lr_decay": 0.4, "growth": 0.5, "of_all": True},
    "normuon, lr 0.0074, growth 0.5 of all": NORMUON
    | {"lr": 0.0074, "lr_rest": 0.022, "weight_decay": 0.14, "lr_decay": 0.45, "growth": 0.5, "of_all": True},
    "chosen": CHOSEN,
    "chosen, rest: decay 0.14": CHOSEN | {"rest": {"weight_decay": 0.14}},
    "chosen, rest: decay 0": CHOSEN | {"rest": {"weight_decay": 0.0}},
    "chosen, rest: a 0.25": CHOSEN | {"rest": {"lr_decay": 0.25}},
    "chosen, rest: a 0.25, decay 0.14": CHOSEN | {"rest": {"lr_decay": 0.25, "weight_decay": 0.14}},
    "chosen, rest: lr 0.01, a 0": CHOSEN | {"rest": {"lr": 0.01, "lr_decay": 0.0}},
    "chosen, rest: lr 0.01, a 0, decay 0": CHOSEN
    | {"rest": {"lr": 0.01, "lr_decay": 0.0, "weight_decay": 0.0}},
    "chosen, rest: lr 0.005, a 0, decay 0": CHOSEN
    | {"rest": {"lr": 0.005, "lr_decay": 0.0, "weight_decay": 0.0}},
}


def measure(name: str, seed: int) -> dict[str, Any]:
    """Train to the longest horizon; the loss at x at every horizon."""
    study = find("shakespeare-anytime")
    settings = dict(LEVERS[name])
    growth, of_all = settings.pop("growth", 0.0), settings.pop("of_all", False)
    rest = settings.pop("rest", {})
    preset = Amuse(
        lr=0.01,
        warmup_steps=60,
        lr_decay_from=180,
        auxiliary_momentum=0.9,
        beta1=0.0,
        rho=0.0,
        momentum=0.9,
        r=13.0,
    )
    config = replace(study.run, optimizer=replace(preset, **settings), seed=seed, steps=study.longest)

    def grow(trainer: Trainer) -> None:
        for group in trainer.optimizer._amuse.param_groups:
            if group["direction"] == "adamw":
                group.update(rest)
            now = 1.0 - 0.1 * min(1.0, 180 / (trainer.step + 1)) ** growth
            if group["direction"] != "adamw":
                group["momentum"] = now
            elif of_all:
                group["auxiliary_momentum"] = now

    return {
        "lever": name,
        "seed": seed,
        "settings": LEVERS[name],
        "loss": losses(config, study.horizons, grow),
    }


def losses(
    config: RunConfig, horizons: Sequence[int], before: Callable[[Trainer], None] = lambda _: None
) -> dict[int, float]:
    """Train, and return the loss at x at these steps.

    Args:
        config: Model, data, optimizer and number of steps of the run.
        horizons: Numbers of the steps after which the model is evaluated, at most `config.steps`.
        before: Called with the trainer before each step, for what no option can change; by default nothing.
    """
    trainer = Trainer.build(config, ALONE, torch.device("cpu"))
    found = {}
    while trainer.step < config.steps:
        before(trainer)
        trainer.advance(look=False)
        if trainer.step in horizons:
            with trainer.at_x():
                found[trainer.step] = round(trainer.measure(full=False)["loss"], 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="*", metavar="LEVER:SEED")
    torch.set_num_threads(1)
    for run in parser.parse_args().runs:
        name, _, seed = run.rpartition(":")
        line = json.dumps(measure(name, int(seed)))
        with RECORD.open("a") as file:
            file.write(line + "\n")
    lines = sorted(map(json.loads, RECORD.read_text().splitlines()), key=lambda line: line["seed"])
    rows = []
    for name in LEVERS:
        found = [list(line["loss"].values()) for line in lines if line["lever"] == name]
        if found:
            rows.append(
                [name, *(", ".join(f"{loss:.3f}" for loss in some) for some in zip(*found, strict=True))]
            )
    print(table(["lever, seeds 0 and 1", *map(str, find("shakespeare-anytime").horizons)], rows))


if __name__ == "__main__":
    main()
