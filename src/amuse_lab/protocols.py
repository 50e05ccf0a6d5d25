"""What the training loop asks of a task and of an optimizer. Neither knows the other."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from amuse_lab.parallel import ALONE, Processes

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, on the device of the run."""


class Task(Protocol):
    """Data, loss and measures of one kind of training."""

    @property
    def unit(self) -> str:
        """What the task counts: "tokens" or "images"."""

    @property
    def batch_size(self) -> int:
        """How many sequences or images one training step sees, over all processes together."""

    @property
    def units_per_step(self) -> int:
        """How many units one training step consumes, over all processes together."""

    @property
    def flops_per_unit(self) -> float | None:
        """Floating-point operations that forward and backward need for one unit; None if nobody counted."""

    @property
    def measure(self) -> str:
        """Which of the values that `evaluate` returns the task is judged by."""

    @property
    def summarized_as(self) -> str:
        """What summary.json calls the measure at x."""

    @property
    def fingerprint(self) -> str:
        """Identifies the data, whatever its folder; a run can be resumed only with the same fingerprint."""

    def note(self, steps: int) -> str | None:
        """Return a one-line message to show before a run of so many steps; None if there is none."""

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Return the training batch of a step, or some of its rows.

        A pure function of the seed and the arguments: which sequences a step sees depends neither on the
        number of processes nor on the steps before.

        Args:
            step: Number of the training step, from 0.
            rows: Which of the `batch_size` sequences or images; all of them by default.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean training loss of a batch, a scalar that can be differentiated.

        Args:
            model: The model or what wraps it; called once, as a function.
            batch: Inputs and targets, from `batch`.
        """

    def sampled_loss(self, model: nn.Module, batch: Batch, uniforms: Tensor) -> Tensor:
        """Return the mean loss of a batch on labels sampled from the model, which some optimizers ask for.

        Args:
            model: Model or what wraps it, as for `loss`.
            batch: From `batch`, whose own labels play no part.
            uniforms: A number in [0, 1) for each label, which decides it; on the device of the run, shape
                (rows, labels of a row). A row has `units_per_step / batch_size` labels.
        """

    def refreshed(self, model: nn.Module) -> AbstractContextManager[None]:
        """Context manager: buffers such as BatchNorm's are recomputed for the parameters, then restored.

        Args:
            model: The model, in eval mode.
        """

    def evaluate(self, model: nn.Module, *, full: bool, processes: Processes = ALONE) -> dict[str, float]:
        """Measure the model as it stands on validation data.

        Args:
            model: The model, in eval mode.
            full: All of the validation data; otherwise a fixed part of it, the same at every call.
            processes: Who shares the work, see `Processes.parts`. Every one of them gets the whole result.

        Returns:
            "loss" (nats), the task's `measure` and whatever else it measures.
        """

    def test(self, model: nn.Module, *, processes: Processes = ALONE) -> dict[str, float]:
        """Measure the finished model on the test set, which nothing else looks at.

        Args:
            model: Model in eval mode, as for `evaluate`.
            processes: Processes that share the work, as for `evaluate`.

        Returns:
            Values by names that begin with "test_"; none if there is no test set.
        """

    def sample(self, model: nn.Module) -> str | None:
        """Return something for people to look at, or None where the task has nothing to show."""


class TrainingOptimizer(Protocol):
    """What the training loop needs of an optimizer and its schedule.

    While training, the parameters hold the point where the gradient is taken (y). Inside `averaged()` they
    hold the point to evaluate and to ship (x). Optimizers without averaging have one point only.
    """

    @property
    def averages(self) -> bool:
        """Whether x and y differ."""

    def watch(self) -> None:
        """Measure the values of `telemetry()` during the next step, if measuring them takes time."""

    def step(self) -> None:
        """Move the parameters by their gradients."""

    def zero_grad(self) -> None:
        """Drop the gradients."""

    def averaged(self) -> AbstractContextManager[None]:
        """Context manager: the parameters hold x; afterwards y again, bit for bit."""

    def fast(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return z, which each step moves, of these parameters; they are z themselves without averaging.

        Outside `averaged()` only. The tensors are those in use.
        """

    def momentum(self, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the mean gradient that the last step kept for each parameter; None where none is kept.

        Outside `averaged()` only. The tensors are those in use.
        """

    def telemetry(self) -> dict[str, float]:
        """Return scalars of the last step to log: "lr", and others such as "beta"."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later process needs to go on bit for bit, with its schedule.

        Outside `averaged()` only: the parameters, which are saved beside it, have to hold y. Dictionaries,
        lists, tuples, numbers, strings and tensors only, which `torch.load` reads with `weights_only=True`.
        The tensors are those in use: save or copy them before the next step.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`; the model holds the parameters saved beside it already.

        Args:
            state: From an optimizer of the same settings for the same model.

        Raises:
            ValueError: If it is that of another kind of optimizer, or does not fit the parameters.
        """


@runtime_checkable
class NeedsCurvature(Protocol):
    """Further methods of an optimizer that needs gradients on labels sampled from the model: Sophia."""

    @property
    def wants_curvature(self) -> bool:
        """Whether the next step needs `observe_curvature()` before it."""

    def observe_curvature(self) -> None:
        """Estimate the curvature from the gradients of the mean loss on labels sampled from the model.

        The parameters hold these gradients, which belong to no step: call `zero_grad()` afterwards.
        """
