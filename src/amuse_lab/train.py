"""One loop for every task and every optimizer."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from amuse_lab import checkpoint, environment, sinks
from amuse_lab.config import RunConfig, to_json
from amuse_lab.errors import ConfigError, RecordError, require
from amuse_lab.figures import draw_curve
from amuse_lab.interrupts import Interrupt
from amuse_lab.learner import Learner, Measures
from amuse_lab.parallel import SHARDED_OPTIMIZERS, Processes, joined
from amuse_lab.progress import Progress, Silence, Status
from amuse_lab.records import RunFolder, replacing
from amuse_lab.sinks import Sink


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: The run folder.
        summary: What its summary.json holds.
        measure: Which value of the summary the task is judged by; `<measure>_y` is the same at y.
        unit: Which value of the summary says how much data was seen.
        signal: The number of the signal that interrupted it; 0 if none did.
    """

    folder: Path
    summary: dict[str, Any]
    measure: str
    unit: str
    signal: int


def train(config: RunConfig, progress: Progress, *, resume: Path | None = None) -> Outcome:
    """Run a config from its beginning, or from where a run folder stands, to its end.

    Ctrl-C and SIGTERM finish the current step and save; the outcome's status is then "interrupted". Under
    torchrun every process calls this, and all of them stop at the same step.

    Args:
        config: What to run.
        progress: Where the leading process shows it.
        resume: The run folder to go on with, from its newest checkpoint that is intact.

    Raises:
        RequestError: If the request cannot be met; nothing was created then.
        TrainingError: If a loss or gradient is not finite; the run folder says "failed" then.
    """
    sinks.check_installed(config.sinks)
    sharded = config.parallel == "fsdp"
    if sharded and config.optimizer.name not in SHARDED_OPTIMIZERS:
        raise ConfigError(
            f"parallel must be ddp for {config.optimizer.name}, got 'fsdp': of its sharded parameters only "
            f"{', '.join(SHARDED_OPTIMIZERS)} are known to take the same steps"
        )
    with joined(config.device, sharded=sharded) as (processes, device):
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        resume = processes.share(resume)
        learner = Learner.build(config, processes, device)
        described = environment.describe(device=device, seed=config.seed, world_size=processes.count)
        with Interrupt(patient=processes.count > 1) as interrupt:
            folder = None
            if processes.leads:
                folder = RunFolder.create(config, described) if resume is None else RunFolder.open(resume)
            try:
                path = processes.share(folder.path if folder else None)
                assert path is not None, "the leading process has a folder"
                run = _Run(
                    config,
                    learner,
                    folder or RunFolder(path),
                    processes,
                    interrupt,
                    progress if processes.leads else Silence(),
                )
                if resume is not None:
                    run.restore(described)
                run.complete()
            finally:
                if folder:
                    folder.close()
    return Outcome(path, run.summary, learner.task.summarized_as, learner.task.unit, run.signal)


@dataclass
class _Run:
    """What is recorded of a learner, and when. Every process has one; the leading one writes."""

    config: RunConfig
    learner: Learner
    folder: RunFolder
    processes: Processes
    interrupt: Interrupt
    progress: Progress
    sinks: list[Sink] = field(default_factory=list)
    signal: int = 0
    evaluation_seconds: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)
    _saved: int = -1  # the step of the newest checkpoint
    _line: tuple[int, Mapping[str, float]] = (0, MappingProxyType({}))  # step and times of the last one

    def restore(self, described: Mapping[str, Any]) -> None:
        """Go on from the newest intact checkpoint, from the beginning if there is none yet.

        Args:
            described: The environment from here on.

        Raises:
            RecordError: If all checkpoints are damaged.
            ConfigError: If more steps are done than there should be in all.
        """
        root = self.folder.path / checkpoint.FOLDER
        path = self.processes.share(
            checkpoint.newest(root, self.progress.note) if self.processes.leads else None
        )
        if path is not None:
            done = checkpoint.step_of(path)
            require(self.config.steps >= done, "steps", f"at least the {done} done", self.config.steps)
            state = checkpoint.load(path, self.processes, device=self.learner.device)
            self.learner.load_state_dict(state["learner"])
            self.evaluation_seconds = state["evaluation_seconds"]
            self._saved = self.learner.step
            self._line = (self.learner.step, self.learner.clock.read())
        if self.processes.leads:
            (self.folder.path / "summary.json").unlink(missing_ok=True)  # it has not ended any more
            self.folder.cut_metrics(self.learner.step)
            again = len(list(self.folder.path.glob("env*.json"))) + 1
            self.folder.write_json(f"env-{again}.json", {"from_step": self.learner.step, **described})
            self.folder.write_json("config.json", to_json(self.config))
        self.progress.note(f"going on with {self.folder.path} after step {self.learner.step}")

    def complete(self) -> None:
        """Train to the last step, or until interrupted, and leave everything that a run leaves.

        Raises:
            RecordError: If the run folder cannot be written any more, such as on a full disk.
        """
        try:
            wanted = self.config.sinks if self.processes.leads else ()
            opened = sinks.opened(wanted, self.config, self.folder.path, self.learner.step)
            with self.progress, opened as self.sinks:
                self._advance()
            self._finish()
        except KeyboardInterrupt:  # the second one, which does not wait
            with suppress(OSError):
                self._summarize("interrupted")
            raise
        except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
            reason = getattr(error, "strerror", None) or error
            failure = f"cannot write {self.folder.path}: {reason}; make room and go on with --resume"
            if self.processes.leads:
                checkpoint.remove_unfinished(self.folder.path / checkpoint.FOLDER)
            with suppress(OSError):
                self._summarize("failed", failure=failure)
            raise RecordError(failure) from error
        except Exception as error:
            with suppress(OSError):
                self._summarize("failed", failure=str(error))
            raise

    def _advance(self) -> None:
        config, learner = self.config, self.learner
        at_x: Measures = {}
        at_y: Measures = {}
        while learner.step < config.steps and not self._stopping():
            following = learner.step + 1
            logging, evaluating, saving = (
                following == config.steps or following % every == 0
                for every in (config.log_every, config.eval_every, config.checkpoint_every)
            )
            learner.advance(look=logging or evaluating or saving)
            if logging or evaluating:
                telemetry = learner.optimizer.telemetry()
                speed = self._speed()
            if logging:
                self._log("train", {"loss": learner.take_losses()} | speed | telemetry)
                self._line = (learner.step, learner.clock.read())
            if evaluating:
                at_x, at_y = self._evaluate(full=False)
                self._log("val_x", at_x)
                self._log("val_y", at_y)
            if saving:
                self._save()
            if logging or evaluating:
                self.progress.show(self._status(at_x, at_y, speed, telemetry, evaluated=evaluating))

    def _stopping(self) -> bool:
        """Whether any process was told to stop: they agree, at every step, on which signal it was."""
        self.signal = self.signal or self.processes.largest(self.interrupt.signal)
        return self.signal != 0

    def _speed(self) -> dict[str, float]:
        """How fast the steps since the last line of training were, and where the time of one went."""
        step, seconds = self._line
        steps = self.learner.step - step
        parts = {
            f"seconds_{part}": (now - seconds.get(part, 0.0)) / steps
            for part, now in self.learner.clock.read().items()
        }
        task = self.learner.task
        rate = task.units_per_step / sum(parts.values())
        speed = {f"{task.unit}_per_second": rate} | parts
        peak = environment.peak_flops(self.learner.device)
        if peak is not None and task.flops_per_unit is not None:
            speed["model_flops_utilization"] = rate * task.flops_per_unit / (peak * self.processes.count)
        return speed

    def _evaluate(self, *, full: bool) -> tuple[Measures, Measures]:
        started = time.perf_counter()
        measured = self.learner.evaluate(full=full)
        self.evaluation_seconds += time.perf_counter() - started
        return measured

    def _seconds(self) -> float:
        """Of training alone."""
        return sum(self.learner.clock.read().values())

    def _units(self) -> int:
        return self.learner.step * self.learner.task.units_per_step

    def _log(self, split: str, values: Mapping[str, float]) -> None:
        if not self.processes.leads:
            return
        place = {"step": self.learner.step, self.learner.task.unit: self._units()}
        line = place | {"seconds": self._seconds(), "split": split} | dict(values)
        self.folder.log(line)
        for sink in self.sinks:
            sink.log(line)

    def _status(
        self, at_x: Measures, at_y: Measures, speed: Measures, telemetry: Measures, *, evaluated: bool
    ) -> Status:
        step, unit = self.learner.step, self.learner.task.unit
        seconds_per_step = (self._seconds() + self.evaluation_seconds) / step
        return Status(
            step=step,
            steps=self.config.steps,
            rate=speed[f"{unit}_per_second"],
            unit=unit,
            seconds_left=seconds_per_step * (self.config.steps - step),
            at_x=at_x,
            at_y=at_y,
            telemetry=telemetry,
            evaluated=evaluated,
        )

    def _save(self) -> None:
        """Write a checkpoint, unless there is one of this step, and remove old ones."""
        if self._saved == self.learner.step:
            return
        self._saved = self.learner.step
        state = {"learner": self.learner.state_dict(), "evaluation_seconds": self.evaluation_seconds}
        if self.processes.leads:
            self.folder.sync_metrics()
        root = self.folder.path / checkpoint.FOLDER
        checkpoint.save(root, self.learner.step, state, self.processes)
        if self.processes.leads:
            checkpoint.prune(root, keep_last=self.config.keep_last, keep_every=self.config.keep_every)

    def _finish(self) -> None:
        """Save, and unless interrupted measure on all validation data and the test set, and sample."""
        self._save()
        weights = self.learner.weights()
        if self.processes.leads:
            self.folder.write_model(weights)
            self._draw()
        at_x: Measures = {}
        at_y: Measures = {}
        tested: Measures = {}
        if not self._stopping():
            at_x, at_y = self._evaluate(full=True)
        if not self._stopping():
            tested = self.learner.test()
        if not self._stopping():
            text = self.learner.sample()
            if text is not None and self.processes.leads:
                self.folder.write_text("sample.txt", text + "\n")
        self._summarize("interrupted" if self.signal else "finished", at_x=at_x, at_y=at_y, tested=tested)

    def _draw(self) -> None:
        with replacing(self.folder.path / "curve.png") as path:
            draw_curve(
                self.folder.metrics(),
                path,
                title=f"{self.config.recipe} with {self.config.optimizer.name}, seed {self.config.seed}",
                averages=self.learner.optimizer.averages,
            )

    def _summarize(
        self,
        status: Literal["finished", "interrupted", "failed"],
        *,
        at_x: Measures = MappingProxyType({}),
        at_y: Measures = MappingProxyType({}),
        tested: Measures = MappingProxyType({}),
        failure: str | None = None,
    ) -> None:
        """Write summary.json.

        Args:
            status: How the run ended.
            at_x: Measured on all validation data at x; empty if it was not.
            at_y: The same at y.
            tested: Measured on the test set.
            failure: What went wrong.
        """
        task = self.learner.task
        unit, measure, name = task.unit, task.measure, task.summarized_as
        seconds = self._seconds()
        self.summary = {
            "recipe": self.config.recipe,
            "optimizer": self.config.optimizer.name,
            "seed": self.config.seed,
            "parameters": sum(parameter.numel() for parameter in self.learner.model.parameters()),
            "steps": self.learner.step,
            unit: self._units(),
            "seconds": seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "val_loss": at_x.get("loss"),
            "val_loss_y": at_y.get("loss"),
            name: at_x.get(measure),
            f"{name}_y": at_y.get(measure),
            **tested,
            f"{unit}_per_second": self._units() / seconds if seconds else 0.0,
            "peak_memory_bytes": environment.peak_memory_bytes(self.learner.device),
            "status": status,
        }
        if failure is not None:
            self.summary["failure"] = failure
        if self.processes.leads:
            self.folder.write_json("summary.json", self.summary)
