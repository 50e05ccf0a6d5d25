"""One loop for every task and every optimizer."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from amuse_lab import environment
from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError, TrainingError
from amuse_lab.figures import draw_curve
from amuse_lab.interrupts import Interrupt
from amuse_lab.progress import Progress, Status
from amuse_lab.protocols import Task, TrainingOptimizer
from amuse_lab.records import RunFolder, replacing


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: The run folder.
        summary: What its summary.json holds.
        measure: Which value of the summary the task is judged by; `<measure>_y` is the same at y.
        unit: Which value of the summary says how much data was seen.
    """

    folder: Path
    summary: dict[str, Any]
    measure: str
    unit: str


def train(config: RunConfig, progress: Progress) -> Outcome:
    """Run a config from beginning to end.

    Ctrl-C finishes the current step and saves the model; the outcome's status is then "interrupted".

    Args:
        config: What to run.
        progress: Where to show it.

    Raises:
        RequestError: If the request cannot be met; nothing was created then.
        TrainingError: If a loss or gradient is not finite; the run folder says "failed" then.
    """
    device = _usable(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    task = config.task.build(seed=config.seed, device=device)
    model = config.task.build_model().to(device)
    optimizer = config.optimizer.build(model, steps=config.steps)
    described = environment.describe(device=device, seed=config.seed)

    with Interrupt() as interrupt:
        folder = RunFolder.create(config, described)
        run = _Run(config, task, model, optimizer, folder, device)
        try:
            with progress:
                run.advance(progress, interrupt)
            run.finish(interrupt)
        except KeyboardInterrupt:  # the second one, which does not wait
            run.summarize("interrupted")
            raise
        except Exception as error:
            run.summarize("failed", failure=str(error))
            raise
    return Outcome(folder.path, run.summary, task.measure, task.unit)


def _usable(name: str) -> torch.device:
    """Check that a device exists and computes."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled for the device
        raise ConfigError(
            f"device must be one that torch can use here, got {name!r}: {error}".split("\n")[0]
        ) from error
    return device


@dataclass
class _Run:
    """The state of a run and the acts it is made of."""

    config: RunConfig
    task: Task
    model: nn.Module
    optimizer: TrainingOptimizer
    folder: RunFolder
    device: torch.device
    step: int = 0
    seconds: float = 0.0  # of training alone
    evaluation_seconds: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)

    def advance(self, progress: Progress, interrupt: Interrupt) -> None:
        """Train until the last step, or until interrupted."""
        losses: list[float] = []
        at_x: dict[str, float] = {}
        at_y: dict[str, float] = {}
        while self.step < self.config.steps and not interrupt.requested:
            losses.append(self._train_step())
            last = self.step == self.config.steps
            logging = last or self.step % self.config.log_every == 0
            evaluating = last or self.step % self.config.eval_every == 0
            if logging:
                self._log("train", {"loss": sum(losses) / len(losses)} | self.optimizer.telemetry())
                losses.clear()
            if evaluating:
                at_x, at_y = self._evaluate(full=False)
                self._log("val_x", at_x)
                self._log("val_y", at_y)
            if logging or evaluating:
                progress.show(self._status(at_x, at_y, evaluated=evaluating))

    def _train_step(self) -> float:
        """Take one step and returns its loss; a loss that is not finite moves nothing."""
        started = time.perf_counter()
        loss = self.task.loss(self.model, self.task.batch(self.step))
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the training loss of step {self.step + 1} is {value}: try a lower learning rate"
            )
        loss.backward()
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        try:
            self.optimizer.step()
        except FloatingPointError as error:
            raise TrainingError(f"step {self.step + 1}: {error}") from error
        self.optimizer.zero_grad()
        self.step += 1
        self.seconds += time.perf_counter() - started
        return value

    def _evaluate(self, *, full: bool) -> tuple[dict[str, float], dict[str, float]]:
        """Measure the model at x and at y, once where they coincide."""
        started = time.perf_counter()
        self.model.eval()
        with self.optimizer.averaged():
            at_x = self.task.evaluate(self.model, full=full)
        at_y = self.task.evaluate(self.model, full=full) if self.optimizer.averages else at_x
        self.model.train()
        self.evaluation_seconds += time.perf_counter() - started
        if not math.isfinite(at_x["loss"] + at_y["loss"]):
            raise TrainingError(
                f"the validation loss after step {self.step} is {at_x['loss']} at x and {at_y['loss']} at y: "
                "try a lower learning rate"
            )
        return at_x, at_y

    def _log(self, split: str, values: Mapping[str, float]) -> None:
        units = {self.task.unit: self.step * self.task.units_per_step}
        self.folder.log(
            {"step": self.step} | units | {"seconds": self.seconds, "split": split} | dict(values)
        )

    def _rate(self) -> float:
        return self.step * self.task.units_per_step / self.seconds if self.step else 0.0

    def _status(self, at_x: Mapping[str, float], at_y: Mapping[str, float], *, evaluated: bool) -> Status:
        seconds_per_step = (self.seconds + self.evaluation_seconds) / self.step
        return Status(
            step=self.step,
            steps=self.config.steps,
            rate=self._rate(),
            unit=self.task.unit,
            seconds_left=seconds_per_step * (self.config.steps - self.step),
            at_x=at_x,
            at_y=at_y,
            telemetry=self.optimizer.telemetry(),
            evaluated=evaluated,
        )

    def finish(self, interrupt: Interrupt) -> None:
        """Save the model and, unless interrupted, measures it on all validation data and samples from it."""
        with self.optimizer.averaged():
            self.folder.write_model(self.model.state_dict())
        self._draw()
        at_x: Mapping[str, float] = {}
        at_y: Mapping[str, float] = {}
        if not interrupt.requested:
            at_x, at_y = self._evaluate(full=True)
        if not interrupt.requested:
            self._sample()
        self.summarize("interrupted" if interrupt.requested else "finished", at_x=at_x, at_y=at_y)

    def _draw(self) -> None:
        with replacing(self.folder.path / "curve.png") as path:
            draw_curve(
                self.folder.metrics(),
                path,
                title=f"{self.config.recipe} with {self.config.optimizer.name}, seed {self.config.seed}",
                averages=self.optimizer.averages,
            )

    def _sample(self) -> None:
        self.model.eval()
        with self.optimizer.averaged():
            text = self.task.sample(self.model)
        self.model.train()
        if text is not None:
            self.folder.write_text("sample.txt", text + "\n")

    def summarize(
        self,
        status: Literal["finished", "interrupted", "failed"],
        *,
        at_x: Mapping[str, float] = MappingProxyType({}),
        at_y: Mapping[str, float] = MappingProxyType({}),
        failure: str | None = None,
    ) -> None:
        """Write summary.json.

        Args:
            status: How the run ended.
            at_x: Measured on all validation data at x; empty if it was not.
            at_y: The same at y.
            failure: What went wrong.
        """
        unit, measure = self.task.unit, self.task.measure
        self.summary = {
            "recipe": self.config.recipe,
            "optimizer": self.config.optimizer.name,
            "seed": self.config.seed,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "steps": self.step,
            unit: self.step * self.task.units_per_step,
            "seconds": self.seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "val_loss": at_x.get("loss"),
            "val_loss_y": at_y.get("loss"),
            measure: at_x.get(measure),
            f"{measure}_y": at_y.get(measure),
            f"{unit}_per_second": self._rate(),
            "peak_memory_bytes": environment.peak_memory_bytes(self.device),
            "status": status,
        }
        if failure is not None:
            self.summary["failure"] = failure
        self.folder.write_json("summary.json", self.summary)
