"""Adapters that give the optimizers of several packages the interface `TrainingOptimizer`."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from amuse_lab.protocols import TrainingOptimizer
from amuse_optim import AMUSE, averaged, telemetry


@contextmanager
def restored(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Context manager: restore the parameters at the end, bit for bit."""
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.data.copy_(value)  # a write that does not count as an edit


def check_kind(state: dict[str, Any], kind: str) -> None:
    """Raise for the state of another kind of optimizer, which some packages would load without an error."""
    if state.get("kind") != kind:
        raise ValueError(
            f"state must be that of {kind}, got {state.get('kind')!r}: go on with the optimizer it is from"
        )


def check_at_y(at_x: bool, act: str) -> None:
    """Raise if the parameters hold x, for a method that needs them to hold y."""
    if at_x:
        raise RuntimeError(f"{act}() inside averaged(): the parameters hold x, not y; leave the block first")


class Packaged:
    """One or more of torch's optimizers, which together hold every parameter once.

    Subclasses add what theirs have beyond a step: a schedule, an average, a second kind of gradient.

    Args:
        optimizers: Optimizers of torch's interface, from any package.
    """

    averages = False

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self._optimizers = optimizers
        self._kind = " and ".join(type(optimizer).__name__ for optimizer in optimizers)

    def watch(self) -> None:
        """Do nothing: what telemetry tells costs nothing to keep."""

    def step(self) -> None:
        """Take one step."""
        for optimizer in self._optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager that changes nothing: there is no average."""
        yield

    def _states(self) -> dict[Tensor, dict[str, Any]]:
        """The state of every parameter that has one."""
        return {p: state for optimizer in self._optimizers for p, state in optimizer.state.items()}

    def fast(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return z where the optimizers keep it, and the parameter itself where they do not."""
        states = self._states()
        return [states.get(parameter, {}).get("z", parameter) for parameter in parameters]

    def momentum(self, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the momentum by either of the names that packages give it."""
        states = self._states()
        found = [states.get(parameter, {}) for parameter in parameters]
        return [state.get("momentum_buffer", state.get("exp_avg")) for state in found]

    def telemetry(self) -> dict[str, float]:
        """Return the lr of the first group in the last step."""
        return {"lr": float(self._optimizers[0].param_groups[0]["lr"])}

    def state_dict(self) -> dict[str, Any]:
        """The packages' own state dicts."""
        states = [optimizer.state_dict() for optimizer in self._optimizers]
        return {"kind": self._kind, "optimizers": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`, with the learning rates that this optimizer was built with."""
        check_kind(state, self._kind)
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            configured = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, lr in zip(optimizer.param_groups, configured, strict=True):
                group["lr"] = lr


class AveragedAmuse(Packaged):
    """AMUSE, which has no schedule and averages: the parameters hold y, inside `averaged()` x."""

    averages = True

    def __init__(self, optimizer: AMUSE) -> None:
        super().__init__(optimizer)
        self._amuse = optimizer

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager: the parameters hold x."""
        with averaged(self._amuse):
            yield

    def watch(self) -> None:
        """Measure the directions of the next step."""
        self._amuse.measurements = {}

    def telemetry(self) -> dict[str, float]:
        """Return lr, beta and the averaging weight c of the last step, then the numbers of every group."""
        group = self._amuse.param_groups[0]
        shared = {"lr": group["lr_t"], "beta": group["beta_t"], "c": group["c_t"]}
        measured = {name: value.item() for name, value in telemetry(self._amuse).items()}
        self._amuse.measurements = None  # until the next `watch()`: measuring takes time in every step
        by_group = {
            name: value
            for name, value in measured.items()
            if name.split("/")[1] not in shared and math.isfinite(value)
        }
        return shared | by_group


class ScheduleFree(Packaged):
    """An optimizer of the package `schedulefree`: the parameters hold y, inside `averaged()` x.

    Args:
        optimizer: AdamWScheduleFree or SGDScheduleFree; its step scales the gradients in place.
        beta: Its interpolation between z (0) and x (1).
    """

    averages = True

    def __init__(self, optimizer: Any, *, beta: float) -> None:  # the package has no types
        super().__init__(optimizer)
        self._optimizer = optimizer
        self._beta = beta
        optimizer.train()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager: the parameters hold x; y comes from a copy, as the package's own switch rounds."""
        with restored([p for group in self._optimizer.param_groups for p in group["params"]]):
            self._optimizer.eval()
            try:
                yield
            finally:
                self._optimizer.train()

    def telemetry(self) -> dict[str, float]:
        """Return lr and beta of the last step."""
        return {"lr": float(self._optimizer.param_groups[0]["scheduled_lr"]), "beta": self._beta}

    def state_dict(self) -> dict[str, Any]:
        """The package's own state dict, in its training mode."""
        check_at_y(not self._optimizer.param_groups[0]["train_mode"], "state_dict")
        return super().state_dict()


class Scheduled(Packaged):
    """Optimizers under one schedule.

    Args:
        optimizers: Optimizers, whose groups hold their peak learning rates under "lr".
        schedule: Maps the number of a step, from 0, to the multiplier of the peak learning rates.
        tells: Keys of the first parameter group that telemetry reports besides "lr".
    """

    def __init__(
        self,
        *optimizers: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        tells: Sequence[str] = (),
    ) -> None:
        super().__init__(*optimizers)
        self._schedule = schedule
        self._tells = tells
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self._step = 0

    def step(self) -> None:
        """Set this step's learning rates and take it."""
        multiplier = self._schedule(self._step)
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * multiplier
        self._move()
        self._step += 1

    def _move(self) -> None:
        """Move the parameters at the learning rates that are set."""
        super().step()

    def telemetry(self) -> dict[str, float]:
        """Return the lr of the first group in the last step, and what else it was told to tell."""
        group = self._optimizers[0].param_groups[0]
        return super().telemetry() | {name: float(group[name]) for name in self._tells}

    def state_dict(self) -> dict[str, Any]:
        """The packages' own state dicts, and the step."""
        return super().state_dict() | {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`, with this schedule and these peaks."""
        super().load_state_dict(state)
        self._step = state["step"]


class WithEMA:
    r"""Any optimizer, with an exponential moving average of what it trains as x.

    With p_t the parameters after step t and the decay d, free of the initial parameters (bias-corrected):

    .. code-block:: text

        x_t = (1 - d) sum_{i <= t} d^(t - i) p_i / (1 - d^t)
            = x_{t-1} + (1 - d) / (1 - d^t) (p_t - x_{t-1})

    so x_1 = p_1, and x_t is the plain mean as d goes to 1. It is kept in float32 at least. An average that
    the optimizer itself keeps is not used.

    Args:
        optimizer: Optimizer that trains the parameters.
        parameters: Parameters that the optimizer trains.
        decay: The decay d, in (0, 1): the average reaches back about 1 / (1 - d) steps.
    """

    averages = True

    def __init__(self, optimizer: TrainingOptimizer, parameters: Sequence[Tensor], *, decay: float) -> None:
        self._optimizer = optimizer
        self._parameters = parameters
        self._decay = decay
        self._average = [
            p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in parameters
        ]
        self._step = 0
        self._at_x = False

    def watch(self) -> None:
        """Pass the request on to the optimizer."""
        self._optimizer.watch()

    def step(self) -> None:
        """Take one step and average its result in."""
        check_at_y(self._at_x, "step")
        self._optimizer.step()
        self._step += 1
        weight = (1 - self._decay) / (1 - self._decay**self._step)
        with torch.no_grad():
            for average, parameter in zip(self._average, self._parameters, strict=True):
                average.lerp_(parameter.to(average.dtype), weight)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self._optimizer.zero_grad()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager: the parameters hold x."""
        with restored(self._parameters):
            for average, parameter in zip(self._average, self._parameters, strict=True):
                parameter.data.copy_(average)
            self._at_x = True
            try:
                yield
            finally:
                self._at_x = False

    def fast(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return z of the optimizer."""
        return self._optimizer.fast(parameters)

    def momentum(self, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the momentum of the optimizer."""
        return self._optimizer.momentum(parameters)

    def telemetry(self) -> dict[str, float]:
        """Return what the optimizer tells."""
        return self._optimizer.telemetry()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, the average and the step."""
        check_at_y(self._at_x, "state_dict")
        return {
            "kind": "EMA",
            "optimizer": self._optimizer.state_dict(),
            "average": list(self._average),
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        check_kind(state, "EMA")
        self._optimizer.load_state_dict(state["optimizer"])
        for average, saved in zip(self._average, state["average"], strict=True):
            average.copy_(saved)
        self._step = state["step"]
