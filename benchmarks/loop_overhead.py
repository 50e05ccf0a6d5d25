"""What the training loop costs beside a bare loop: the same model, data and optimizer in four lines.

    python benchmarks/loop_overhead.py --threads 1

The two take turns, ten steps each, in one process: the loop with its losses, telemetry, metrics file and
progress, without evaluations and checkpoints, whose times are their own. Prints medians over the turns, and
the median of the ratios of neighbouring turns, as one JSON object for each optimizer.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from amuse_lab.config import RunConfig
from amuse_lab.progress import Silence, Status
from amuse_lab.recipes import find
from amuse_lab.train import train


class TakingTurns(Silence):
    """Measures how long the loop was away since its last line, then lets the bare loop take as many steps."""

    def __init__(self, config: RunConfig) -> None:
        torch.manual_seed(config.seed)
        self._task = config.task.build(seed=config.seed, device=torch.device(config.device))
        self._model = config.task.build_model()
        self._optimizer = config.optimizer.build(self._model, steps=config.steps)
        self._steps = config.log_every
        self._step = 0
        self._returned = time.perf_counter()
        self.loop: list[float] = []
        self.bare: list[float] = []

    def show(self, status: Status) -> None:  # noqa: ARG002 - every progress gets it
        """Take a turn."""
        started = time.perf_counter()
        self.loop.append(started - self._returned)
        for _ in range(self._steps):
            loss = self._task.loss(self._model, self._task.batch(self._step))
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self._step += 1
        self._returned = time.perf_counter()
        self.bare.append(self._returned - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="shakespeare")
    parser.add_argument("--optimizer", nargs="+", default=["amuse", "adamw"])
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    for name in arguments.optimizer:
        with tempfile.TemporaryDirectory() as runs:
            config = replace(find(arguments.recipe)(name), runs=Path(runs), threads=arguments.threads)
            # One more turn at each end: the first warms up, the last ends with an evaluation.
            steps = (arguments.turns + 2) * config.log_every
            config = replace(config, steps=steps, eval_every=steps, checkpoint_every=steps)
            torch.set_num_threads(arguments.threads)
            turns = TakingTurns(config)
            train(config, turns)
        loop, bare = turns.loop[1:-1], turns.bare[1:-1]
        units = turns._task.units_per_step * config.log_every
        report = {
            "recipe": arguments.recipe,
            "optimizer": name,
            "threads": arguments.threads,
            "turns": len(loop),
            f"{turns._task.unit} per second, loop": round(units / statistics.median(loop)),
            f"{turns._task.unit} per second, bare": round(units / statistics.median(bare)),
            "overhead": round(statistics.median(a / b for a, b in zip(loop, bare, strict=True)) - 1, 4),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
