"""A Llama of 30 M on generated tokens at several horizons: AMUSE, and Muon and AdamW under cosine schedules.

The rule, fixed before the runs: three learning rates are tried for each optimizer at the shortest horizon,
with a seed of their own, and the one with the lowest validation loss is kept; then AMUSE, which knows no
horizon, runs once to the longest and is measured on its way at all of them, while Muon and AdamW run once for
each, told where they end. Three seeds do so; then three seeds run to twice the longest horizon, and so on.
Runs begin as long as they can end in time.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from amuse_lab.config import OptimizerConfig, RunConfig
from amuse_lab.optimizers import AdamW, Amuse, DMuon
from amuse_lab.tasks.lm.model import ModelConfig
from benchmarks.gpu.part import Part, main
from benchmarks.gpu.tokens import GeneratedConfig
from benchmarks.gpu.trainers import Bed, parameters

# As the parameter set 30m of `amuse-lab bench`, with a context to train with.
MODEL = ModelConfig(n_embd=512, n_head=8, n_layer=8, context=512, vocabulary=4096)
TINY = ModelConfig(n_embd=32, n_head=2, n_layer=1, context=16, vocabulary=256)
HORIZONS, SEEDS, TRIAL_SEED = (250, 500, 1000), 3, 100
WARMUP = 0.2  # of the shortest horizon, for everybody
RATES: Mapping[str, tuple[float, ...]] = {
    "amuse": (0.005, 0.01, 0.02),
    "muon": (0.005, 0.01, 0.02),
    "adamw": (0.001, 0.002, 0.004),
}


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        optimizer: Whose.
        seed: Of the first weights and the batches.
        steps: How long it is, and what a schedule is told.
        measured_at: The steps after which it is measured.
    """

    optimizer: str
    seed: int
    steps: int
    measured_at: tuple[int, ...]


def rounds(horizons: Sequence[int]) -> Iterator[list[Run]]:
    """Yield the runs of one seed after the other, without end; of each seed AMUSE's first, then short ones.

    The first three seeds have the horizons given, three more one that is twice the longest, and so on.
    """
    now = list(horizons)
    while True:
        for seed in range(SEEDS):
            scheduled = [
                Run(optimizer, seed, horizon, (horizon,))
                for horizon in now
                for optimizer in RATES
                if optimizer != "amuse"
            ]
            yield [Run("amuse", seed, max(now), tuple(now)), *scheduled]
        now = [2 * max(now)]


def optimizer_config(name: str, lr: float, shortest: int) -> OptimizerConfig:
    """Return an optimizer with a learning rate; what else there is to set is the same at every horizon."""
    warmup = max(1, round(WARMUP * shortest))
    if name == "amuse":
        options: dict[str, Any] = {"warmup_steps": warmup, "t0_steps": shortest, "auxiliary_momentum": 0.9}
        return Amuse(lr=lr, weight_decay=0.1, **options)
    if name == "muon":
        return DMuon(lr=lr, warmup_steps=warmup, weight_decay=0.1, beta1=0.9)
    return AdamW(lr=lr, warmup_steps=warmup, weight_decay=0.1, beta1=0.9, beta2=0.99)


class Bench:
    """Trains the same model again and again.

    Args:
        part: Whose.
        task: The model and its tokens.
        compiled: Whether torch.compile translates it.
        shortest: The shortest horizon.

    Attributes:
        seconds_per_step: Of the runs so far, evaluations included; None before the first.
    """

    def __init__(self, part: Part, task: GeneratedConfig, *, compiled: bool, shortest: int) -> None:
        self._first = RunConfig(
            recipe="anytime",
            task=task,
            optimizer=optimizer_config("amuse", RATES["amuse"][0], shortest),
            steps=1,
            clip=1.0,
            precision="amp-bf16",
            compile=compiled,
            device=str(part.device),
        )
        self._part = part
        self._shortest = shortest
        self.bed = Bed(self._first, part.device)
        self.seconds_per_step: float | None = None

    def fits(self, run: Run) -> bool:
        """Whether a run can be expected to end in time."""
        return self.seconds_per_step is None or 1.2 * run.steps * self.seconds_per_step < self._part.left - 10

    def train(self, run: Run, lr: float) -> dict[int, dict[str, float]]:
        """Train, and return the validation loss at x and at y after the steps asked for."""
        config = replace(
            self._first,
            optimizer=optimizer_config(run.optimizer, lr, self._shortest),
            steps=run.steps,
            seed=run.seed,
        )
        task = config.task.build(seed=run.seed, device=self._part.device)
        trainer = self.bed.trainer(config, task)
        found: dict[int, dict[str, float]] = {}
        started = time.monotonic()
        for step in range(1, run.steps + 1):
            trainer.advance(look=step in run.measured_at)
            if step in run.measured_at:
                at_x, at_y = trainer.evaluate()
                found[step] = {"x": at_x["loss"], "y": at_y["loss"]}
        self.seconds_per_step = (time.monotonic() - started) / run.steps
        return found


def tuned(part: Part, bench: Bench, shortest: int) -> dict[str, float]:
    """Try the learning rates and return the best for each optimizer; the middle one where time was short."""
    best: dict[str, float] = {}
    for name, rates in RATES.items():
        losses: dict[float, float] = {}
        for lr in rates:
            run = Run(name, TRIAL_SEED, shortest, (shortest,))
            what = f"trial: {name}, lr {lr}"
            with part.trying(what):
                if not bench.fits(run):
                    raise TimeoutError("no time was left")
                losses[lr] = bench.train(run, lr)[shortest]["x"]
                part.add(what, trial=True, optimizer=name, lr=lr, horizon=shortest, loss=losses[lr])
        best[name] = min(losses, key=losses.__getitem__) if losses else rates[len(rates) // 2]
    return best


def compared(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over seeds for each optimizer and horizon."""
    groups: dict[tuple[int, str], list[float]] = {}
    for result in results:
        if "horizon" in result and not result["trial"]:
            groups.setdefault((result["horizon"], result["optimizer"]), []).append(result["loss"])
    return [
        {
            "horizon": horizon,
            "optimizer": optimizer,
            "seeds": len(losses),
            "mean": statistics.mean(losses),
            "spread": statistics.stdev(losses) if len(losses) > 1 else None,
        }
        for (horizon, optimizer), losses in sorted(groups.items())
    ]


def measure(part: Part) -> None:
    """Tune, then run rounds until the time is over."""
    horizons = (2, 4) if part.tiny else HORIZONS
    task = GeneratedConfig(
        model=TINY if part.tiny else MODEL,
        data="generated",
        batch=4 if part.tiny else 64,
        eval_windows=8 if part.tiny else 256,
        streams=24 if part.tiny else 4096,
        length=128 if part.tiny else 16_384,
    )
    bench = Bench(part, task, compiled=not part.tiny, shortest=horizons[0])
    part.tell(
        parameters=parameters(bench.bed.model),
        tokens_per_step=bench.bed.task.units_per_step,
        horizons=horizons,
        rates=RATES,
    )
    best = tuned(part, bench, horizons[0])
    part.tell(chosen=best)
    for runs in itertools.islice(rounds(horizons), 1 if part.tiny else None):
        for run in runs:
            if not bench.fits(run):
                return
            with part.trying(f"{run.optimizer} to {run.steps}, seed {run.seed}"):
                for step, losses in bench.train(run, best[run.optimizer]).items():
                    part.add(
                        f"{run.optimizer} at {step}, seed {run.seed}",
                        trial=False,
                        optimizer=run.optimizer,
                        horizon=step,
                        loss=losses["x"],
                        loss_at_y=losses["y"],
                        seed=run.seed,
                        lr=best[run.optimizer],
                    )
        part.tell(compared=compared(part.content["results"]))


if __name__ == "__main__":
    sys.exit(main(measure))
