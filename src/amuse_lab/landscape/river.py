"""The river test: what a short decay of the learning rate still gains from a point of a run."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from amuse_lab.errors import require
from amuse_lab.landscape.points import Parameters, Points, trained
from amuse_lab.ranges import Count, check_ranges
from amuse_lab.studies.statistics import Interval, interval
from amuse_lab.trainer import Trainer
from amuse_optim import AMUSE, param_groups


@dataclass(frozen=True)
class RiverSettings:
    """How long and how often the learning rate is let down.

    Attributes:
        steps: Training steps of a decay.
        rates: Learning rates that it starts from; the best of them counts.
        branches: How often, each time on other batches.
        powers: Power averages of z to start from as well, by their kappas; of runs that are trained on the
            spot, as checkpoints have none.
    """

    steps: Count = 40
    rates: tuple[float, ...] = (0.003, 0.01)
    branches: Count = 3
    powers: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_ranges(self)
        positive = bool(self.rates) and all(rate > 0 for rate in self.rates)
        require(positive, "rates", "one or more positive learning rates", self.rates)
        require(all(kappa >= 1 for kappa in self.powers), "powers", "at least 1 each", self.powers)


@dataclass(frozen=True)
class Branch:
    """The decays on the same batches.

    Attributes:
        number: Number of the branch, from 0; each branch decays on training batches of its own.
        losses: Validation loss after the decay, by the point it started from and its learning rate.
    """

    number: int
    losses: dict[str, dict[str, float]]

    def best(self, start: str) -> float:
        """Return the loss after the best decay from a point."""
        return min(self.losses[start].values())


@dataclass(frozen=True)
class River:
    """The river test at one step of a run.

    Attributes:
        step: Training steps of the run.
        before: Validation loss at the points, by their names.
        branches: Losses after the decays, for each sequence of batches.
    """

    step: int
    before: dict[str, float]
    branches: list[Branch]

    def gain(self, start: str, rate: str | None = None) -> Interval:
        """Return what x has still to gain: its loss minus that after a decay from a point, over branches.

        Args:
            start: Name of the point that the decay starts from: "x", "y", "z" or one of the further points.
            rate: Learning rate that the decay starts from, as a key of `Branch.losses`; None takes the best
                one of each branch.
        """
        after = [
            branch.best(start) if rate is None else branch.losses[start][rate] for branch in self.branches
        ]
        return interval([self.before["x"] - loss for loss in after])


def river_test(
    trainer: Trainer, settings: RiverSettings, others: Mapping[str, Parameters] | None = None
) -> River:
    """Let the learning rate down from x, from y and from z on the same batches.

    The decay is the same for every optimizer: plain Muon, with AdamW for the rest, without averages and with
    fresh state; the learning rate falls in a line to 0. The run is not touched.

    Args:
        trainer: The run, on one process, between two steps.
        settings: Length, learning rates and number of the decays.
        others: Further points by name, such as another average of z.

    Returns:
        Validation losses, on the data that is for the time of training.
    """
    points = dict(Points.of(trainer).items())
    points = {name: point for name, point in points.items() if name == "x" or _differs(point, points["x"])}
    points |= others or {}
    model = copy.deepcopy(trainer.model)
    branches = []
    for number in range(settings.branches):
        losses = {
            name: {
                f"{rate:g}": _decayed(trainer, model, point, rate, number, settings.steps)
                for rate in settings.rates
            }
            for name, point in points.items()
        }
        branches.append(Branch(number, losses))
    before = {name: _validation_loss(trainer, _put(model, point)) for name, point in points.items()}
    return River(trainer.step, before, branches)


def _differs(point: Parameters, other: Parameters) -> bool:
    return any(not torch.equal(value, other[name]) for name, value in point.items())


@torch.no_grad()
def _put(model: nn.Module, point: Parameters) -> nn.Module:
    """Let a model have these parameters."""
    for name, parameter in trained(model).items():
        parameter.copy_(point[name])
    return model


def _validation_loss(trainer: Trainer, model: nn.Module) -> float:
    model.eval()
    with trainer.task.refreshed(model):
        return float(f"{trainer.task.evaluate(model, full=False)['loss']:.6g}")


def _decayed(
    trainer: Trainer, model: nn.Module, point: Parameters, rate: float, number: int, steps: int
) -> float:
    """The validation loss after a decay from a point; the model is left at its end."""
    _put(model, point).train()
    optimizer = AMUSE(
        param_groups(model), lr=rate, warmup_steps=0, t0_steps=2, beta1=0.0, rho=0.0, auxiliary_momentum=0.9
    )
    first = trainer.step + number * steps
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        trainer.task.loss(model, trainer.task.batch(first + step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return _validation_loss(trainer, model)
