"""What the training loop asks of a task and of an optimizer. Neither knows the other."""

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, on the device of the run."""


class Task(Protocol):
    """Data, loss and measures of one kind of training."""

    @property
    def unit(self) -> str:
        """What the task counts: "tokens" or "images"."""

    @property
    def units_per_step(self) -> int:
        """How many of them one training step consumes."""

    @property
    def measure(self) -> str:
        """Which of the values that `evaluate` returns the task is judged by."""

    def batch(self, step: int) -> Batch:
        """Return the training batch of a step: a pure function of the seed and the step, 0 is the first."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean training loss of a batch, a scalar that can be differentiated."""

    def evaluate(self, model: nn.Module, *, full: bool) -> dict[str, float]:
        """Measure the model as it stands on validation data.

        Args:
            model: The model, in eval mode.
            full: All of the validation data; otherwise a fixed part of it, the same at every call.

        Returns:
            "loss" (nats), the task's `measure` and whatever else it measures.
        """

    def sample(self, model: nn.Module) -> str | None:
        """Return something for people to look at, or None where the task has nothing to show."""


class TrainingOptimizer(Protocol):
    """An optimizer with its schedule, whatever its make.

    While training, the parameters hold the point where the gradient is taken (y). Inside `averaged()` they
    hold the point to evaluate and to ship (x). Optimizers without averaging have one point only.
    """

    @property
    def averages(self) -> bool:
        """Whether x and y differ."""

    def step(self) -> None:
        """Move the parameters by their gradients."""

    def zero_grad(self) -> None:
        """Drop the gradients."""

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the parameters hold x; afterwards y again, bit for bit."""

    def telemetry(self) -> dict[str, float]:
        """Return what the last step used: "lr", and what else the optimizer tells, such as "beta"."""
