"""What computes: a model, its optimizer and its task, on one process of a run."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from amuse_lab.config import RunConfig, to_json
from amuse_lab.errors import DataError, RecordError, TrainingError, require
from amuse_lab.parallel import Processes, full_tensor, no_sync, parallelize
from amuse_lab.protocols import Batch, NeedsCurvature, Task, TrainingOptimizer
from amuse_lab.timing import Stopwatch

Metrics = Mapping[str, float]


class Trainer:
    """Takes steps, measures, and can be saved and loaded.

    Every process of a run has one, and all of them call the same methods in the same order.

    Args:
        config: Settings of the run.
        task: The task: its training batches, its loss, and what it measures in evaluations.
        model: On the device, sharded if it is to be.
        trained: What to call for the training loss: the model, or DDP around it.
        optimizer: Optimizer of the model, with its schedule.
        processes: All processes of the run as this one sees them, which share each batch.
        device: Device that this process computes on.

    Attributes:
        step: Number of training steps done, those before the run was resumed included.
        losses: Mean training loss of each step since `take_losses()`, over its whole batch; on a GPU without
            those that have not been copied to the CPU yet.
        clock: Seconds of each part of the steps.
        device: Device that this process computes on.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        model: nn.Module,
        trained: nn.Module,
        optimizer: TrainingOptimizer,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.config = config
        self.task = task
        self.model = model
        self.optimizer = optimizer
        self.step = 0
        self.losses: list[float] = []
        self.clock = Stopwatch(device)
        self.device = device
        self._trained = trained
        self._processes = processes
        self._unseen: list[Tensor] = []
        self._always_looks = device.type == "cpu"  # where it costs nothing

    @classmethod
    def build(cls, config: RunConfig, processes: Processes, device: torch.device) -> Self:
        """Load the data, make the model from the seed, and build the optimizer.

        Raises:
            RequestError: If the data, the optimizer or the number of processes does not fit.
        """
        torch.manual_seed(config.seed)
        task = config.task.build(seed=config.seed, device=device)
        divides = task.batch_size % processes.world_size == 0
        require(divides, "batch", f"a multiple of the {processes.world_size} processes", task.batch_size)
        model = config.task.build_model().to(device)
        trained = parallelize(
            model,
            processes=processes,
            mode=config.parallel,
            precision=config.precision,
            compiled=config.compile,
        )
        optimizer = config.optimizer.build(model, steps=config.steps)
        optimizer.telemetry()  # some only measure what has been asked for before the step
        return cls(config, task, model, trained, optimizer, processes, device)

    def advance(self, *, look: bool) -> None:
        """Take one step. If losses are checked, one that is not finite raises before the parameters change.

        Args:
            look: Whether to measure the optimizer's telemetry, and to check the losses, which on a GPU means
                to wait for it. On a CPU losses are always checked, as that costs nothing.

        Raises:
            TrainingError: If a loss or a gradient is not finite.
        """
        self.clock.start()
        if isinstance(self.optimizer, NeedsCurvature) and self.optimizer.wants_curvature:
            self._accumulate(self._sampled_loss())
            self.optimizer.observe_curvature()
            self.optimizer.zero_grad()
        self._unseen.append(self._accumulate(lambda model, batch, _: self.task.loss(model, batch)))
        if look or self._always_looks:
            self._look_at_losses(last=self.step + 1)
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if look:
            self.optimizer.watch()
        try:
            self.optimizer.step()
        except FloatingPointError as error:
            raise TrainingError(f"step {self.step + 1}: {error}") from error
        self.optimizer.zero_grad()
        self.clock.lap("optimizer")
        self.step += 1

    def _accumulate(self, loss_of: Callable[[nn.Module, Batch, slice], Tensor]) -> Tensor:
        """Leave the gradient of the mean loss over the whole batch; returns this process's part of that."""
        total = torch.zeros((), device=self.device)
        microbatches = list(self._processes.rows(self.task.batch_size, self.config.micro_batch))
        for number, (rows, weight) in enumerate(microbatches, start=1):
            batch = self.task.batch(self.step, rows)
            self.clock.lap("data")
            with no_sync(self._trained, last=number == len(microbatches)):
                with self._autocast():
                    loss = loss_of(self._trained, batch, rows) * weight
                loss.backward()
            total += loss.detach() / self._processes.world_size
            self.clock.lap("forward_backward")
        return total

    def _sampled_loss(self) -> Callable[[nn.Module, Batch, slice], Tensor]:
        """The task's loss on labels sampled from the model: others in every step.

        The whole batch's numbers are drawn, on the CPU, so that who computes which rows changes none of them.
        """
        seed = int(np.random.SeedSequence((self.config.seed, self.step)).generate_state(1)[0])
        shape = (self.task.batch_size, self.task.units_per_step // self.task.batch_size)
        uniforms = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        return lambda model, batch, rows: self.task.sampled_loss(model, batch, uniforms[rows])

    def _autocast(self) -> AbstractContextManager[Any]:
        # FSDP2 gathers bfloat16 parameters itself.
        enabled = self.config.precision == "amp-bf16" and self.config.parallel != "fsdp"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def look_at_losses(self) -> None:
        """Have the losses of all steps so far in `losses`, which on a GPU means to wait for them.

        Raises:
            TrainingError: If one that nobody has looked at is not finite.
        """
        if self._unseen:
            self._look_at_losses(last=self.step)

    def _look_at_losses(self, *, last: int) -> None:
        """Add the unseen losses, up to that of step `last`, over the processes; all must be finite."""
        values: list[float] = self._processes.sum(torch.stack(self._unseen)).tolist()
        for step, value in enumerate(values, start=last + 1 - len(values)):
            if not math.isfinite(value):
                raise TrainingError(f"the training loss of step {step} is {value}: try a lower learning rate")
        self.losses += values
        self._unseen.clear()

    def take_losses(self) -> float:
        """Return the mean of `losses` and begin anew."""
        mean = sum(self.losses) / len(self.losses)
        self.losses.clear()
        return mean

    def evaluate(self) -> tuple[Metrics, Metrics]:
        """Measure the model at x and at y on the validation data that is for the time of training.

        Raises:
            TrainingError: If a loss is not finite.
        """
        with self.at_x():
            at_x = at_y = self.measure(full=False)
        if self.optimizer.averages:
            with self.at_y():
                at_y = self.measure(full=False)
        self.check_finite(at_x, at_y)
        return at_x, at_y

    def check_finite(self, at_x: Metrics, at_y: Metrics) -> None:
        """Check the losses of an evaluation.

        Raises:
            TrainingError: If one is not finite.
        """
        if not math.isfinite(at_x["loss"] + at_y["loss"]):
            raise TrainingError(
                f"the validation loss after step {self.step} is {at_x['loss']} at x and {at_y['loss']} at y: "
                "try a lower learning rate"
            )

    @contextmanager
    def at_y(self) -> Iterator[None]:
        """Context manager: eval mode at y, where gradients are taken, with BatchNorm's statistics of y."""
        self.model.eval()
        with self._autocast(), self.task.refreshed(self.model):
            yield
        self.model.train()

    @contextmanager
    def at_x(self) -> Iterator[None]:
        """Context manager: eval mode at the averaged weights x, with BatchNorm's statistics of x."""
        with self.optimizer.averaged(), self.at_y():
            yield

    def measure(self, *, full: bool) -> Metrics:
        """Measure the model as it stands, inside `at_x()` or `at_y()`.

        Args:
            full: On all of the validation data; otherwise on the part of it that is always the same.
        """
        return self.task.evaluate(self.model, full=full, processes=self._processes)

    def test(self) -> Metrics:
        """Measure the model as it stands on the test set; nothing if there is none."""
        return self.task.test(self.model, processes=self._processes)

    def sample(self) -> str | None:
        """Return what the task has to show of the model as it stands."""
        # Each token would be a shape of its own to compile for.
        with torch.compiler.set_stance("force_eager"):
            return self.task.sample(self.model)

    def weights(self) -> dict[str, Tensor]:
        """Return the model as it stands, whole, on the CPU; nothing where this process does not lead."""
        gathered: dict[str, Tensor] = {}
        for name, tensor in self.model.state_dict().items():
            entire = full_tensor(tensor)
            if self._processes.is_main:
                gathered[name] = entire.to("cpu", copy=True)
        return gathered

    def state_dict(self) -> dict[str, Any]:
        """Return all that later steps and logs depend on, including the losses that are not logged yet.

        Raises:
            TrainingError: If one of these losses is not finite: a run should not continue from there.
        """
        self.look_at_losses()
        return {
            "step": self.step,
            "data": self.task.fingerprint,
            "settings": to_json(self.config)["optimizer"],
            "losses": list(self.losses),
            "seconds": self.clock.read(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, changed: Collection[str] = ()) -> None:
        """Go on from a `state_dict()`.

        Args:
            state: State of an earlier trainer, from `state_dict`.
            changed: Dotted names of settings that the user has changed, such as "optimizer.lr".

        Raises:
            DataError: If the data is not what that was trained on; nothing has changed then.
            RecordError: If the optimizer had other settings; nothing has changed then.
        """
        ours = to_json(self.config)["optimizer"]
        for name, value in state.get("settings", ours).items():
            if ours.get(name, value) != value and f"optimizer.{name}" not in changed:
                raise RecordError(
                    f"the checkpoint was trained with optimizer.{name} {value!r}, but config.json says "
                    f"{ours[name]!r}: undo what was edited there"
                )
        # Checkpoints of the first version do not tell.
        if state.get("data", self.task.fingerprint) != self.task.fingerprint:
            raise DataError("the data is not what this run began with: bring that back, or start a new run")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.losses = list(state["losses"])
        self.clock.seconds = dict(state["seconds"])
