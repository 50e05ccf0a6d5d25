"""Where a run stands: x, y and z as named tensors, its hidden matrices, and the loss around it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amuse_lab.optimizers.groups import routed
from amuse_lab.protocols import Task
from amuse_lab.trainer import Trainer
from amuse_optim.landscape import Objective, module_loss

Parameters = dict[str, Tensor]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that take gradients, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def hidden_matrices(model: nn.Module) -> list[str]:
    """Return the names of the parameters that Muon takes, as AMUSE tells them apart."""
    matrices = set(routed(model)[0])
    return [name for name, p in trained(model).items() if p in matrices]


def copied(parameters: Parameters | dict[str, nn.Parameter], values: Sequence[Tensor]) -> Parameters:
    """Return copies of values by the names of parameters, in float32, or float64 where they are."""
    return {
        name: value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)
        for name, value in zip(parameters, values, strict=True)
    }


@dataclass(frozen=True)
class Points:
    """The three sequences of a run at one step, as copies; all the same without averaging.

    Attributes:
        x: The average, which is evaluated and shipped.
        y: The point where gradients are taken, between z and x; training keeps the parameters there.
        z: The fast sequence: what each step moves, and what x is an average of.
    """

    x: Parameters
    y: Parameters
    z: Parameters

    @classmethod
    def of(cls, trainer: Trainer) -> "Points":
        """Read them off a trainer, between two steps."""
        parameters = trained(trainer.model)
        values = list(parameters.values())
        y, z = copied(parameters, values), copied(parameters, trainer.optimizer.fast(values))
        with trainer.optimizer.averaged():
            return cls(copied(parameters, values), y, z)

    def items(self) -> list[tuple[str, Parameters]]:
        """Return the points with their names."""
        return [("x", self.x), ("y", self.y), ("z", self.z)]


def between(start: Parameters, end: Parameters, position: float) -> Parameters:
    """Return (1 - position) start + position end."""
    return {name: torch.lerp(value, end[name], position) for name, value in start.items()}


class _TaskLoss(nn.Module):
    """A task's loss as a module, so that its model's parameters can be replaced."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, batch: Any) -> Tensor:
        return self._task.loss(self.model, batch)


@contextmanager
def _without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Context manager: activation checkpointing, which torch.func does not take, is off."""
    with_it = [module for module in model.modules() if getattr(module, "checkpointing", False)]
    try:
        for module in with_it:
            module.checkpointing = False  # type: ignore[assignment]  # a module's attributes have no types
        yield
    finally:
        for module in with_it:
            module.checkpointing = True  # type: ignore[assignment]  # as above


def objective(trainer: Trainer, batches: int) -> Objective:
    """Return the training loss on fixed batches, those that follow the last step of the run.

    The model is in training mode, so that BatchNorm uses the statistics of each batch, as the gradients of
    training do; a model with dropout has no such loss, and is refused when it is differentiated.

    Args:
        trainer: The run, whose model is only read.
        batches: How many training batches, each cut as the run cuts it for its memory.
    """
    task, config = trainer.task, trainer.config
    rows = config.micro_batch or task.batch_size
    parts = [slice(start, start + rows) for start in range(0, task.batch_size, rows)]
    inner = module_loss(
        _TaskLoss(task, trainer.model),
        lambda loss, _: loss,
        forward=lambda run, batch: run(batch),
        buffers_may_change=True,
    )

    def loss(parameters: Parameters, batch: Any) -> Tensor:
        with _without_checkpointing(trainer.model):
            return inner({f"model.{name}": value for name, value in parameters.items()}, batch)

    first = config.steps
    return Objective(loss, [task.batch(first + n, part) for n in range(batches) for part in parts])
