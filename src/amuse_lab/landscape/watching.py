"""Updates over a stretch of steps, by what they are within the dominant subspace and within the bulk."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amuse_lab.landscape.points import Parameters, Points, copied, trained
from amuse_lab.trainer import Trainer
from amuse_optim.landscape import Parts, Subspace, cosines, effective_rank

SINGULAR_VALUES = 16
"""Singular values that are kept of a matrix, evenly spread over its rank."""

MARGIN = 1.4
"""How far the plane reaches, in units of the farthest point of a trajectory."""


@dataclass(frozen=True)
class Watched:
    """What the updates z_{t+1} - z_t of the hidden matrices were over a stretch of steps.

    Attributes:
        momentum: r_dom of the momentum at each step; None for an optimizer that keeps none.
        update: r_dom of each update: the norm of its part in the dominant subspace over its norm, in [0, 1].
        cosines: Cosine of each update but the first with the one before, dominant and bulk part.
        persistence: ||sum of updates||^2 over the sum of ||update||^2, of both parts: 1 if they are
            independent, up to the number of steps if they are alike, less than 1 if they undo each other.
        ranks: Mean over matrices of the effective rank over the smaller side, of momentum and update at the
            last step.
        singular: Singular values over the largest one, of momentum and update of the largest matrix.
    """

    momentum: list[float] | None
    update: list[float]
    cosines: dict[str, list[float]]
    persistence: dict[str, float]
    ranks: dict[str, float]
    singular: dict[str, list[float]]


class Plane:
    """A plane through x with one direction in the dominant subspace and one in the bulk.

    The directions are the dominant and the bulk part of z - x, each of length 1; without averaging of the
    first update.

    Args:
        subspace: The dominant subspace of all parameters at x.
        points: The run's points when the plane is laid.

    Attributes:
        directions: The dominant and the bulk direction; None until there is an update.
        paths: Coordinates of x, y and z, step by step.
    """

    def __init__(self, subspace: Subspace, points: Points) -> None:
        self._subspace = subspace
        self._points = points
        self.paths: dict[str, list[tuple[float, float]]] = {"x": [], "y": [], "z": []}
        self.directions: tuple[Parameters, Parameters] | None = None
        self._lay(points)

    def _lay(self, points: Points) -> None:
        """Lay the plane through x and this z, unless they are one point."""
        origin = self._points.x
        away = {name: points.z[name] - origin[name] for name in origin}
        parts = self._subspace.split(away)
        if all(part.any() for part in parts):
            first, second = (self._subspace.coordinates.unflatten(part / part.norm()) for part in parts)
            self.directions = first, second
            self._add(self._points)

    def follow(self, points: Points) -> None:
        """Note where x, y and z are after a step."""
        if self.directions is None:
            self._lay(points)
        if self.directions is not None:
            self._add(points)

    def _add(self, points: Points) -> None:
        assert self.directions is not None, "the plane is laid"
        for name, point in points.items():
            place = [
                math.fsum(
                    float(((point[key] - self._points.x[key]) * value).sum(dtype=torch.float64))
                    for key, value in direction.items()
                )
                for direction in self.directions
            ]
            self.paths[name].append((place[0], place[1]))

    def reaches(self) -> tuple[float, float]:
        """Return how far from x to look in either direction."""
        places = [place for path in self.paths.values() for place in path]
        first, second = (max(abs(place[axis]) for place in places) * MARGIN for axis in (0, 1))
        return first, second


def watch(
    trainer: Trainer,
    subspace: Subspace | None,
    plane: Plane | None,
    steps: int,
    after_step: Callable[[], None] = lambda: None,
) -> Watched | None:
    """Take training steps and measure their updates.

    Args:
        trainer: Trainer of the run, between two steps; it takes these steps.
        subspace: The dominant subspace of its hidden matrices; None if there is none.
        plane: Where to follow the run's points; None follows none.
        steps: How many steps to take.
        after_step: Called after each of them.

    Returns:
        None without a subspace, or if nothing moved.
    """
    parameters = trained(trainer.model)
    values = list(parameters.values())
    before = copied(parameters, trainer.optimizer.fast(values))
    updates: list[Tensor] = []
    momenta: list[Parts] | None = []
    shares: list[float] = []
    turns: list[Parts] = []
    total: Tensor | None = None
    squares = [0.0, 0.0]
    for _ in range(steps):
        trainer.advance(look=False)
        after_step()
        if plane is not None:
            plane.follow(Points.of(trainer))
        after = copied(parameters, trainer.optimizer.fast(values))
        update = {name: after[name] - before[name] for name in after}
        before = after
        if subspace is None or not any(update[name].any() for name in subspace.coordinates.shapes):
            continue
        flat = subspace.coordinates.flatten(update)
        shares.append(subspace.shares(flat).dominant)
        momentum = _momentum(trainer, subspace)
        momenta = None if momentum is None or momenta is None else [*momenta, subspace.shares(momentum)]
        updates = [*updates[-1:], flat]
        turns += cosines(subspace, updates)
        total = flat.clone() if total is None else total + flat
        squares = [
            sum_ + part.square().sum(dtype=torch.float64).item()
            for sum_, part in zip(squares, subspace.split(flat), strict=True)
        ]
    if subspace is None or total is None:
        return None
    moved = [part.square().sum(dtype=torch.float64).item() for part in subspace.split(total)]
    matrices = {"update": subspace.coordinates.unflatten(updates[-1])}
    if momenta:
        last = _momentum(trainer, subspace)
        assert last is not None, "every step had one"
        matrices["momentum"] = last
    return Watched(
        momentum=[short(part.dominant) for part in momenta] if momenta else None,
        update=[short(share) for share in shares],
        cosines={name: [short(getattr(turn, name)) for turn in turns] for name in ("dominant", "bulk")},
        persistence={
            name: short(one / of) for name, one, of in zip(("dominant", "bulk"), moved, squares, strict=True)
        },
        ranks={name: short(_rank(each)) for name, each in matrices.items()},
        singular={name: _singular(each) for name, each in matrices.items()},
    )


def short(value: float) -> float:
    """Return a number to five digits."""
    return float(f"{value:.5g}")


def _momentum(trainer: Trainer, subspace: Subspace) -> Parameters | None:
    """The momentum of the parameters that the subspace is of."""
    parameters = trained(trainer.model)
    names = list(subspace.coordinates.shapes)
    found = trainer.optimizer.momentum([parameters[name] for name in names])
    kept = {name: value.float() for name, value in zip(names, found, strict=True) if value is not None}
    return kept if len(kept) == len(names) and any(value.any() for value in kept.values()) else None


def _rank(tensors: Parameters) -> float:
    ranks = [effective_rank(m) / min(m.shape) for m in map(_matrix, tensors.values()) if m.any()]
    return math.fsum(ranks) / len(ranks)


def _singular(tensors: Parameters) -> list[float]:
    """Singular values of the largest matrix over the largest of them, the first and the last among them."""
    values = torch.linalg.svdvals(_matrix(max(tensors.values(), key=lambda tensor: tensor.numel())))
    places = torch.linspace(0, len(values) - 1, min(SINGULAR_VALUES, len(values))).round().long()
    return [short(value) for value in (values / values[0])[places].tolist()]


def _matrix(tensor: Tensor) -> Tensor:
    """A parameter as output channels by all else."""
    return tensor.flatten(1)
