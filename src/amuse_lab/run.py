"""The loop of a run: training steps, logging, evaluations, checkpoints and the summary at the end."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from safetensors import SafetensorError

from amuse_lab import checkpoint, environment, sinks
from amuse_lab.config import RunConfig
from amuse_lab.errors import RecordError, RequestError, require
from amuse_lab.figures import draw_curve
from amuse_lab.files import replacing
from amuse_lab.interrupts import Interrupt
from amuse_lab.parallel import Processes
from amuse_lab.progress import Progress, Status
from amuse_lab.records import METRICS, RunFolder
from amuse_lab.resume import changed_since, with_history
from amuse_lab.sinks import Sink
from amuse_lab.trainer import Metrics, Trainer


def title_of(config: RunConfig) -> str:
    """Return the title of a run's picture: the recipe, what it really was trained on, and with what."""
    return f"{config.recipe} on {config.task.data} with {config.optimizer.name}, seed {config.seed}"


@dataclass
class Run:
    """Runs a trainer, and logs, evaluates and saves it. Every process has one; only the main one writes.

    Attributes:
        config: Settings of the run.
        trainer: Model, optimizer and task on this process.
        folder: The run folder, where metrics, checkpoints and the model are written.
        processes: All processes of the run as this one sees them, which share the work and exchange results.
        interrupt: Tells whether this process was asked to stop.
        progress: Display of the run's progress.
        sinks: Where metrics go besides metrics.jsonl; open while training.
        signal: Number of the signal that interrupted the run; 0 if none did.
        evaluation_seconds: Time spent in evaluations, in seconds.
        summary: Content of summary.json; empty until it is written.
    """

    config: RunConfig
    trainer: Trainer
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
        candidates = checkpoint.intact(root, self.progress.note) if self.processes.is_main else iter(())
        metrics_size = 0
        while (path := self.processes.broadcast(next(candidates, None))) is not None:
            done = checkpoint.step_of(path)
            require(self.config.steps >= done, "steps", f"at least the {done} done", self.config.steps)
            failure = None
            try:
                state = checkpoint.load(path, self.processes, device=self.trainer.device)
                changed = changed_since(self.folder.path, self.config, done)
                self.trainer.load_state_dict(state["trainer"], changed=changed)
                self.evaluation_seconds = float(state["evaluation_seconds"])
                metrics_size = int(state.get("metrics_size", 0))
            except RequestError:
                raise
            except Exception as error:  # whatever a file brings about that somebody else has made
                failure = checkpoint.why_not_loaded(error)
                self.progress.note(f"checkpoint {path} cannot be loaded and is not used: {failure}")
            if not self.processes.all_reduce_max(failure is not None):
                break
        if path is None and checkpoint.finished(root):
            raise RecordError(f"no checkpoint in {root} can be used; start the run anew")
        self._saved = self.trainer.step if path is not None else self._saved
        self._line = (self.trainer.step, self.trainer.clock.read())
        if self.processes.is_main:
            for moved in checkpoint.set_aside(root, self.trainer.step):
                self.progress.note(f"what could not be used is kept as {moved}")
            self._reopen(described, metrics_size)
        self.progress.note(f"going on with {self.folder.path} after step {self.trainer.step}")

    def _reopen(self, described: Mapping[str, Any], metrics_size: int) -> None:
        """Make the run folder that of a run that goes on after the trainer's step.

        Args:
            described: The environment from here on.
            metrics_size: Bytes that metrics.jsonl had when the checkpoint was written.
        """
        step, folder = self.trainer.step, self.folder
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
        """Train to the last step, or until interrupted, then write the model, the plot and the summary.

        Raises:
            RecordError: If the run folder cannot be written any more, such as on a full disk.
        """
        try:
            wanted = self.config.sinks if self.processes.is_main else ()
            opened = sinks.opened(wanted, self.config, self.folder.path, self.trainer.step)
            with self.progress, opened as self.sinks:
                self._advance()
            self._finish()
        except KeyboardInterrupt:  # the second one, which does not wait
            with suppress(OSError):
                self._summarize("interrupted")
            raise
        except BrokenPipeError:  # nobody reads what is printed any more
            with suppress(OSError):
                self._summarize("interrupted")
            raise
        except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
            reason = getattr(error, "strerror", None) or error
            failure = f"cannot write {self.folder.path}: {reason}; make room and go on with --resume"
            if self.processes.is_main:
                checkpoint.remove_unfinished(self.folder.path / checkpoint.FOLDER)
            with suppress(OSError):
                self._summarize("failed", failure=failure)
            raise RecordError(failure) from error
        except Exception as error:
            with suppress(OSError):
                self._summarize("failed", failure=str(error))
            raise

    def _advance(self) -> None:
        config, trainer = self.config, self.trainer
        at_x: Metrics = {}
        at_y: Metrics = {}
        while trainer.step < config.steps and not self._stopping():
            following = trainer.step + 1
            logging, evaluating, saving = (
                following == config.steps or following % every == 0
                for every in (config.log_every, config.eval_every, config.checkpoint_every)
            )
            trainer.advance(look=logging or evaluating or saving)
            if logging or evaluating:
                telemetry = trainer.optimizer.telemetry()
                speed = self._speed()
            if logging:
                self._log("train", {"loss": trainer.take_losses()} | speed | telemetry)
                self._line = (trainer.step, trainer.clock.read())
            if evaluating:
                with self._counting_evaluation():
                    at_x, at_y = trainer.evaluate()
                self._log("val_x", at_x)
                self._log("val_y", at_y)
            if saving:
                self._save()
            if logging or evaluating:
                self.progress.show(self._status(at_x, at_y, speed, telemetry, evaluated=evaluating))

    def _stopping(self) -> bool:
        """True if any process was told to stop; all must call it, so that they stop at the same step."""
        self.signal = self.signal or self.processes.all_reduce_max(self.interrupt.signal)
        return self.signal != 0

    def _speed(self) -> dict[str, float]:
        """How fast the steps since the last line of training were, and where the time of one went."""
        step, seconds = self._line
        steps = self.trainer.step - step
        parts = {
            f"seconds_{part}": (now - seconds.get(part, 0.0)) / steps
            for part, now in self.trainer.clock.read().items()
        }
        task = self.trainer.task
        rate = task.units_per_step / sum(parts.values())
        speed = {f"{task.unit}_per_second": rate} | parts
        peak = environment.peak_flops(self.trainer.device)
        if peak is not None and task.flops_per_unit is not None:
            speed["model_flops_utilization"] = rate * task.flops_per_unit / (peak * self.processes.world_size)
        return speed

    @contextmanager
    def _counting_evaluation(self) -> Iterator[None]:
        """Context manager: the time inside counts as evaluation."""
        started = time.perf_counter()
        yield
        self.evaluation_seconds += time.perf_counter() - started

    def _seconds(self) -> float:
        """Seconds of training, without evaluations and checkpoints."""
        return sum(self.trainer.clock.read().values())

    def _units(self) -> int:
        return self.trainer.step * self.trainer.task.units_per_step

    def _log(self, split: str, values: Mapping[str, float]) -> None:
        if not self.processes.is_main:
            return
        place = {"step": self.trainer.step, self.trainer.task.unit: self._units()}
        line = place | {"seconds": self._seconds(), "split": split} | dict(values)
        self.folder.log(line)
        for sink in self.sinks:
            sink.log(line)

    def _status(
        self, at_x: Metrics, at_y: Metrics, speed: Metrics, telemetry: Metrics, *, evaluated: bool
    ) -> Status:
        step, unit = self.trainer.step, self.trainer.task.unit
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
        if self._saved == self.trainer.step:
            return
        self._saved = self.trainer.step
        state = {"trainer": self.trainer.state_dict(), "evaluation_seconds": self.evaluation_seconds}
        if self.processes.is_main:
            state["metrics_size"] = self.folder.sync_metrics()
        root = self.folder.path / checkpoint.FOLDER
        checkpoint.save(root, self.trainer.step, state, self.processes)
        if self.processes.is_main:
            checkpoint.prune(root, keep_last=self.config.keep_last, keep_every=self.config.keep_every)

    def _finish(self) -> None:
        """Save, and unless interrupted measure on all validation data and the test set, and sample."""
        self._save()
        trainer = self.trainer
        at_x: Metrics = {}
        at_y: Metrics = {}
        tested: Metrics = {}
        with trainer.at_x():
            weights = trainer.weights()
            if self.processes.is_main:
                self.folder.write_model(weights)
                self._draw()
            if not self._stopping():
                with self._counting_evaluation():
                    at_x = trainer.measure(full=True)
            if not self._stopping():
                tested = trainer.test()
            if not self._stopping():
                text = trainer.sample()
                if text is not None and self.processes.is_main:
                    self.folder.write_text("sample.txt", text + "\n")
        if not trainer.optimizer.averages:
            at_y = at_x
        elif not self._stopping():
            with self._counting_evaluation(), trainer.at_y():
                at_y = trainer.measure(full=True)
        if not self._stopping():
            trainer.check_finite(at_x, at_y)
        self._summarize("interrupted" if self.signal else "finished", at_x=at_x, at_y=at_y, tested=tested)

    def _draw(self) -> None:
        with replacing(self.folder.path / "curve.png") as path:
            draw_curve(
                self.folder.metrics(),
                path,
                title=title_of(self.config),
                averages=self.trainer.optimizer.averages,
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
            status: How the run ended: after its last step, by a signal, or by an error.
            at_x: Measured on all validation data at x; empty if it was not.
            at_y: Measured on all validation data at y; without averaging the same as `at_x`.
            tested: Measured on the test set at x; empty if there is none or it was not measured.
            failure: Error that ended the run, in words; None if none did.
        """
        task = self.trainer.task
        unit, measure, name = task.unit, task.measure, task.summarized_as
        seconds = self._seconds()
        self.summary = {
            "recipe": self.config.recipe,
            "optimizer": self.config.optimizer.name,
            "seed": self.config.seed,
            "parameters": sum(parameter.numel() for parameter in self.trainer.model.parameters()),
            "steps": self.trainer.step,
            unit: self._units(),
            "seconds": seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "val_loss": at_x.get("loss"),
            "val_loss_y": at_y.get("loss"),
            name: at_x.get(measure),
            f"{name}_y": at_y.get(measure),
            **tested,
            f"{unit}_per_second": self._units() / seconds if seconds else 0.0,
            "peak_memory_bytes": environment.peak_memory_bytes(self.trainer.device),
            "status": status,
        }
        if failure is not None:
            self.summary["failure"] = failure
        if self.processes.is_main:
            self.folder.write_json("summary.json", self.summary)
