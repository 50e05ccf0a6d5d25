"""One loop for every task and every optimizer."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from amuse_lab import checkpoint, environment, sinks
from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError, DataError, MissingError, RecordError, RequestError, require
from amuse_lab.figures import draw_curve
from amuse_lab.files import locked, replacing
from amuse_lab.interrupts import Interrupt
from amuse_lab.learner import Learner, Metrics
from amuse_lab.parallel import SHARDED_OPTIMIZERS, Processes, check_threads, joined
from amuse_lab.progress import Progress, Silence, Status
from amuse_lab.records import METRICS, RunFolder
from amuse_lab.resume import changes_of, newest_unfinished, with_history
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


def train(
    config: RunConfig, progress: Progress, *, resume: Path | None = None, newest: bool = False
) -> Outcome:
    """Run a config from its beginning, or from where a run folder stands, to its end.

    Ctrl-C and SIGTERM finish the current step and save; the outcome's status is then "interrupted". Under
    torchrun every process calls this, and all of them stop at the same step.

    Args:
        config: What to run.
        progress: Where the leading process shows it.
        resume: The run folder to go on with, from its newest checkpoint that is intact.
        newest: Go on with the newest unfinished run of this config, if there is one. Of several processes
            that ask for the same at once, one runs.

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
    try:
        config.task.check(config.steps)
    except DataError as error:
        raise MissingError(str(error)) from error
    if config.threads is not None:
        check_threads(config.threads)
        torch.set_num_threads(config.threads)
    with joined(config.device, sharded=sharded) as (processes, device):
        learner = Learner.build(config, processes, device)
        described = environment.describe(device=device, seed=config.seed, world_size=processes.count)
        with Interrupt(patient=processes.count > 1) as interrupt:
            folder = None
            if processes.leads:
                with locked(config.runs / config.recipe) if newest else nullcontext():
                    resume = newest_unfinished(config) if newest else resume
                    folder = RunFolder.create(config, described) if resume is None else RunFolder.open(resume)
            try:
                resume, path = processes.share((resume, folder.path if folder else None))
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
                note = learner.task.note(config.steps)
                if note is not None:
                    run.progress.note(note)
                run.complete()
            finally:
                if folder:
                    folder.close()
    return Outcome(path, run.summary, learner.task.summarized_as, learner.task.unit, run.signal)


def title_of(config: RunConfig) -> str:
    """Return the title of a run's picture: the recipe, what it really was trained on, and with what."""
    return f"{config.recipe} on {config.task.data} with {config.optimizer.name}, seed {config.seed}"


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
        changed = changes_of(self.folder.path, self.config)
        candidates = checkpoint.intact(root, self.progress.note) if self.processes.leads else iter(())
        metrics_size = 0
        while (path := self.processes.share(next(candidates, None))) is not None:
            done = checkpoint.step_of(path)
            require(self.config.steps >= done, "steps", f"at least the {done} done", self.config.steps)
            failure = None
            try:
                state = checkpoint.load(path, self.processes, device=self.learner.device)
                self.learner.load_state_dict(state["learner"], changed=changed)
                self.evaluation_seconds = float(state["evaluation_seconds"])
                metrics_size = int(state.get("metrics_size", 0))
            except RequestError:
                raise
            except Exception as error:  # whatever a file brings about that somebody else has made
                failure = checkpoint.why_not_loaded(error)
                self.progress.note(f"checkpoint {path} cannot be loaded and is not used: {failure}")
            if not self.processes.largest(failure is not None):
                break
        if path is None and checkpoint.finished(root):
            raise RecordError(f"no checkpoint in {root} can be used; start the run anew")
        self._saved = self.learner.step if path is not None else self._saved
        self._line = (self.learner.step, self.learner.clock.read())
        if self.processes.leads:
            self._reopen(described, metrics_size)
        self.progress.note(f"going on with {self.folder.path} after step {self.learner.step}")

    def _reopen(self, described: Mapping[str, Any], metrics_size: int) -> None:
        """Make the run folder that of a run that goes on after the learner's step.

        Args:
            described: The environment from here on.
            metrics_size: Bytes that metrics.jsonl had when the checkpoint was written.
        """
        step, folder = self.learner.step, self.folder
        folder.cut_metrics(step)
        left = folder.sync_metrics()
        if left < metrics_size:
            self.progress.note(
                f"{folder.path / METRICS} has lost lines: {left:,} of the {metrics_size:,} bytes up to step "
                f"{step} are left, and the curve will lack the rest"
            )
        (folder.path / "summary.json").unlink(missing_ok=True)  # it has not ended any more
        again = len(list(folder.path.glob("env*.json"))) + 1
        folder.write_json(f"env-{again}.json", {"from_step": step, **described})
        folder.write_json("config.json", with_history(folder.path, self.config, step))

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
        at_x: Metrics = {}
        at_y: Metrics = {}
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
                with self._counting_evaluation():
                    at_x, at_y = learner.evaluate()
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

    @contextmanager
    def _counting_evaluation(self) -> Iterator[None]:
        """Context manager: the time inside counts as evaluation."""
        started = time.perf_counter()
        yield
        self.evaluation_seconds += time.perf_counter() - started

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
        self, at_x: Metrics, at_y: Metrics, speed: Metrics, telemetry: Metrics, *, evaluated: bool
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
            state["metrics_size"] = self.folder.sync_metrics()
        root = self.folder.path / checkpoint.FOLDER
        checkpoint.save(root, self.learner.step, state, self.processes)
        if self.processes.leads:
            checkpoint.prune(root, keep_last=self.config.keep_last, keep_every=self.config.keep_every)

    def _finish(self) -> None:
        """Save, and unless interrupted measure on all validation data and the test set, and sample."""
        self._save()
        learner = self.learner
        at_x: Metrics = {}
        at_y: Metrics = {}
        tested: Metrics = {}
        with learner.at_x():
            weights = learner.weights()
            if self.processes.leads:
                self.folder.write_model(weights)
                self._draw()
            if not self._stopping():
                with self._counting_evaluation():
                    at_x = at_y = learner.measure(full=True)
            if not self._stopping():
                tested = learner.test()
            if not self._stopping():
                text = learner.sample()
                if text is not None and self.processes.leads:
                    self.folder.write_text("sample.txt", text + "\n")
        if learner.optimizer.averages and not self._stopping():
            with self._counting_evaluation(), learner.at_y():
                at_y = learner.measure(full=True)
        if not self._stopping():
            learner.check_finite(at_x, at_y)
        self._summarize("interrupted" if self.signal else "finished", at_x=at_x, at_y=at_y, tested=tested)

    def _draw(self) -> None:
        with replacing(self.folder.path / "curve.png") as path:
            draw_curve(
                self.folder.metrics(),
                path,
                title=title_of(self.config),
                averages=self.learner.optimizer.averages,
            )

    def _summarize(
        self,
        status: Literal["finished", "interrupted", "failed"],
        *,
        at_x: Metrics = MappingProxyType({}),
        at_y: Metrics = MappingProxyType({}),
        tested: Metrics = MappingProxyType({}),
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
