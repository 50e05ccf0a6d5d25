"""What holds an optimizer without a horizon back at 3,200 steps of `shakespeare-anytime`: a pilot.

python -m benchmarks.long_end "muon, split:2"   # adds runs, with their seeds, to records/long_end.jsonl
python -m benchmarks.long_end                   # prints the table

Question: the preset was behind Muon with a cosine by 0.036 at 3,200 steps. Is that its learning rates over
the steps (`rule`), its average, its direction, or what decays? Each run changes a thing or two of an earlier
one; seeds 0 to 2, which are tuning seeds of the study. No rule was fixed beforehand: what is chosen here is
tuned and judged by the study.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from amuse_lab.optimizers import Amuse
from amuse_lab.parallel import ALONE
from amuse_lab.studies.catalogue import find
from amuse_lab.trainer import Trainer
from benchmarks.gpu.tables import table

RECORD = Path(__file__).parents[1] / "records" / "long_end.jsonl"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Trial:
    """One setting.

    Attributes:
        matrices: Options of the hidden matrices.
        rest: Options of embedding, norms and head.
        head_decay: Weight decay of the head; None means that of the rest.
        direction: Update direction of the hidden matrices: "muon" or "normuon".
        split: Whether queries, keys and values are orthogonalized apart.
        rule: The learning rate over the steps, see `factor`.
        rule_of_rest: That of the rest; None means `rule`.
        growth: Momentum, of matrices and rest, is 1 - 0.1 min(1, (180 / t)^growth); 0 leaves it.
    """

    matrices: Mapping[str, float]
    rest: Mapping[str, float]
    head_decay: float | None = None
    direction: Literal["muon", "normuon"] = "normuon"
    split: bool = False
    rule: str = "cosine"
    rule_of_rest: str | None = None
    growth: float = 0.0


def factor(rule: str, t: int, steps: int) -> float:
    """What a learning rate is multiplied by: the warm-up of 60 steps, and what the rule names.

    "cosine"; "wsd F": down to 0 over the last share F; "power A from T": (T / t)^A after step T, and beside
    it "down F": down to 0 over the last share F, or "teeth Q": down to 0 from t to Q t, again and again.
    """
    warm, (name, *numbers) = min(1.0, t / 60), rule.replace(",", "").split()
    if name == "cosine":
        return warm * 0.5 * (1.0 + math.cos(math.pi * t / steps))
    down = 1.0
    if name == "wsd" or "down" in numbers:
        down = min(1.0, (steps - t) / (float(numbers[-1]) * steps))
    elif "teeth" in numbers and t > 60:
        down = 1.0 - math.log(t / 60) / math.log(float(numbers[-1])) % 1
    return warm * down * (1.0 if name == "wsd" else min(1.0, float(numbers[2]) / t) ** float(numbers[0]))


CHOSEN, CHOSEN_REST = {"lr": 0.006724, "weight_decay": 0.02306}, {"lr": 0.02105, "weight_decay": 0.02306}
COSINE = {"lr": 0.007442, "weight_decay": 0.1405, "momentum": 0.9508}
COSINE_REST, STILL = {"lr": 0.02213, "weight_decay": 0.1405}, {"lr": 0.02213, "weight_decay": 0.0}
NINE = COSINE | {"momentum": 0.9}
LOW, LOW_REST = {"lr": 0.004434, "weight_decay": 0.1477}, {"lr": 0.0124, "weight_decay": 0.0}
P562, P5, P75 = "power 0.562 from 180", "power 0.5 from 540", "power 0.75 from 360"
SMALL, SMALL_REST = (
    {"lr": 0.007766, "weight_decay": 0.1281, "momentum": 0.9},
    {"lr": 0.006731, "weight_decay": 0.0},
)
P488 = "power 0.488 from 360"
# "all decay": embedding and norms as well. "head": of the rest the head alone.
TRIALS: Mapping[str, Trial] = {
    "teeth, all decay": Trial(
        CHOSEN | {"lr": 0.012}, CHOSEN_REST | {"lr": 0.03}, rule="power 0.3 from 180, teeth 1.15"
    ),
    "teeth without decay, all decay": Trial(
        {"lr": 0.008, "weight_decay": 0.03},
        {"lr": 0.022, "weight_decay": 0.03},
        rule="power 0 from 180, teeth 1.15",
    ),
    "cosine for the rest alone, all decay": Trial(CHOSEN, COSINE_REST, rule=P562, rule_of_rest="cosine"),
    "cosine, all decay": Trial(COSINE, COSINE_REST),
    "cosine": Trial(COSINE, STILL),
    "cosine, muon": Trial(COSINE, STILL, None, "muon"),
    "cosine, muon, head": Trial(COSINE, STILL, 0.14, "muon"),
    "preset with decay 0.14 of matrices": Trial(
        CHOSEN | {"weight_decay": 0.14}, CHOSEN_REST | {"weight_decay": 0.0}, rule=P562
    ),
    "the same, from 540": Trial(
        CHOSEN | {"weight_decay": 0.14}, CHOSEN_REST | {"weight_decay": 0.0}, rule="power 0.562 from 540"
    ),
    "muon, 0.5 from 540": Trial(COSINE, STILL, None, "muon", rule=P5),
    "muon, 0.5 from 540, head": Trial(COSINE, STILL, 0.14, "muon", rule=P5),
    "muon, 0.5 from 540, momentum growing": Trial(COSINE, STILL, None, "muon", rule=P5, growth=0.5),
    "muon, 0.5 from 540, momentum 0.9": Trial(NINE, STILL, None, "muon", rule=P5),
    "muon, 0.5 from 540, rest 0.01 constant": Trial(
        COSINE, {"lr": 0.01, "weight_decay": 0.0}, None, "muon", rule=P5, rule_of_rest="power 0 from 1"
    ),
    "muon, 0.35 from 300": Trial(COSINE, STILL, None, "muon", rule="power 0.35 from 300"),
    "muon, 0.7 from 900": Trial(COSINE, STILL, None, "muon", rule="power 0.7 from 900"),
    "muon, 0.5 from 180": Trial(COSINE, STILL, None, "muon", rule="power 0.5 from 180"),
    "muon, 0.75 from 400": Trial(COSINE, STILL, None, "muon", rule="power 0.75 from 400"),
    "lr 0.01, 0.5 from 400": Trial(COSINE | {"lr": 0.01}, STILL, rule="power 0.5 from 400"),
    "0.75 from 360, head": Trial(COSINE, STILL, 0.14, rule=P75),
    "1 from 540, head": Trial(COSINE, STILL, 0.14, rule="power 1 from 540"),
    "lr 0.01, rest 0.03, 0.75 from 360, head": Trial(
        COSINE | {"lr": 0.01}, STILL | {"lr": 0.03}, 0.14, rule=P75
    ),
    "normuon": Trial(NINE, STILL, 0.14, rule=P75),
    "normuon, lr 0.005": Trial(NINE | {"lr": 0.005}, STILL, 0.14, rule=P75),
    "normuon, 1 from 540": Trial(NINE, STILL, 0.14, rule="power 1 from 540"),
    "normuon, decay 0.3": Trial(NINE | {"weight_decay": 0.3}, STILL, 0.3, rule=P75),
    "normuon, rest 0.015": Trial(NINE, STILL | {"lr": 0.015}, 0.14, rule=P75),
    "normuon, lr 0.0085, rest 0.025, 0.6 from 180": Trial(
        NINE | {"lr": 0.0085}, STILL | {"lr": 0.025}, 0.14, rule="power 0.6 from 180"
    ),
    "normuon, down over the last fifth": Trial(NINE, STILL, 0.14, rule=f"{P75}, down 0.2"),
    "normuon, constant and down over the last 0.3": Trial(NINE, STILL, 0.14, rule="wsd 0.3"),
    "muon": Trial(NINE, STILL, 0.14, "muon", rule=P75),
    "muon, lr 0.01": Trial(NINE | {"lr": 0.01}, STILL, 0.14, "muon", rule=P75),
    "muon, 0.6 from 360": Trial(NINE, STILL, 0.14, "muon", rule="power 0.6 from 360"),
    "muon, split": Trial(NINE, STILL, 0.14, "muon", split=True, rule=P75),
    "muon, split, low": Trial(LOW, LOW_REST, 0.1477, "muon", split=True, rule="power 0.52 from 360"),
    "normuon, split, low": Trial(LOW, LOW_REST, 0.1477, split=True, rule="power 0.52 from 360"),
    # After the study had chosen.
    "as chosen": Trial(SMALL, SMALL_REST, 0.1281, split=True, rule=P488),
    "as chosen, momentum growing": Trial(SMALL, SMALL_REST, 0.1281, split=True, rule=P488, growth=0.5),
    "as chosen, rest 0.0045": Trial(SMALL, SMALL_REST | {"lr": 0.0045}, 0.1281, split=True, rule=P488),
}


def measure(trial: Trial, seed: int) -> dict[str, dict[int, float]]:
    """Train to the longest horizon; the loss at x (the average with r = 13) and at z, by horizon."""
    study = find("shakespeare-anytime")
    steps = study.longest
    optimizer = Amuse(
        lr=0.01,
        warmup_steps=0,
        matrices=trial.direction,
        split_qkv=trial.split,
        decaying="all" if trial.head_decay is None else "matrices",
        auxiliary_momentum=0.9,
        beta1=0.0,
        rho=0.0,
        momentum=0.9,
        r=13.0,
    )
    config = replace(study.run, optimizer=optimizer, seed=seed, steps=steps)
    trainer = Trainer.build(config, ALONE, torch.device("cpu"))
    chosen: list[tuple[dict[str, Any], str, float, str]] = []
    for group in trainer.optimizer._amuse.param_groups:
        is_rest = group["direction"] == "adamw"
        group.update(trial.rest if is_rest else trial.matrices)
        if trial.head_decay is not None and HEAD in group["param_names"]:
            group["weight_decay"] = trial.head_decay
        rule = trial.rule_of_rest if is_rest and trial.rule_of_rest else trial.rule
        chosen.append((group, "auxiliary_momentum" if is_rest else "momentum", group["lr"], rule))
    found: dict[str, dict[int, float]] = {"x": {}, "z": {}}
    while trainer.step < steps:
        t = trainer.step + 1
        for group, momentum, lr, rule in chosen:
            group["lr"] = lr * factor(rule, t, steps)
            if trial.growth:
                group[momentum] = 1.0 - 0.1 * min(1.0, (180 / t) ** trial.growth)
        trainer.advance(look=False)
        if trainer.step in study.horizons:
            with trainer.at_x():
                found["x"][trainer.step] = round(trainer.measure(full=False)["loss"], 4)
            found["z"][trainer.step] = round(trainer.measure(full=False)["loss"], 4)
    return found


def rows(lines: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """One row for each trial: its seeds, and the losses at x of all of them at each horizon."""
    made = []
    kept = sorted(lines, key=lambda line: line["seed"])
    for name in TRIALS:
        some = [line for line in kept if line["trial"] == name]
        if some:
            losses = zip(*(line["x"].values() for line in some), strict=True)
            made.append(
                [name, ", ".join(str(line["seed"]) for line in some)]
                + [", ".join(f"{loss:.3f}" for loss in at) for at in losses]
            )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="*", metavar="TRIAL:SEED")
    torch.set_num_threads(1)
    for run in parser.parse_args().runs:
        name, _, seed = run.rpartition(":")
        trial = TRIALS[name]
        line = {"trial": name, "seed": int(seed), "settings": asdict(trial)} | measure(trial, int(seed))
        with RECORD.open("a") as file:
            file.write(json.dumps(line) + "\n")
    lines = [json.loads(line) for line in RECORD.read_text().splitlines()]
    columns = ["loss at x", "seeds", *map(str, find("shakespeare-anytime").horizons)]
    print(table(columns, rows(lines)))


if __name__ == "__main__":
    main()
