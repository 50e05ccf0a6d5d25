"""What is measured around one step of a run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amuse_lab.errors import require
from amuse_lab.landscape.points import Parameters, Points, between, hidden_matrices, objective
from amuse_lab.landscape.watching import Plane, Watched, watch
from amuse_lab.ranges import Count, check_ranges
from amuse_lab.trainer import Trainer
from amuse_optim.landscape import (
    ClusterError,
    Eigenpairs,
    Objective,
    Operator,
    Subspace,
    dominant_subspace,
    eigenpairs,
    hessian,
    loss_in_plane,
    loss_on_segment,
)

SPARE = 6
"""Eigenpairs beyond k, among which a gap is looked for."""

TOLERANCE = 3e-4
"""Largest residual of an eigenpair, relative to the largest eigenvalue."""

SEGMENT = tuple(n / 8 for n in range(-4, 21))
"""Where the loss is taken on the segment: 0 is z, 1 is x, 2 as far beyond x as z is before it."""

ALONG = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where gradients are taken on the segment."""

GRID = 13
"""Points of the plane along each of its directions."""


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        k: Dimension of the dominant subspace, widened where it would cut through a cluster.
        batches: Training batches of which the mean loss is the landscape.
        window: Training steps after the measured one over which updates are watched.
        budget: Matrix-vector products of one eigenproblem at most.
    """

    k: Count = 10
    batches: Count = 2
    window: Count = 20
    budget: Count = 400

    def __post_init__(self) -> None:
        check_ranges(self)
        least = 2 * (self.k + SPARE)
        require(self.budget >= least, "budget", f"at least 2 (k + {SPARE}) = {least}", self.budget)


@dataclass(frozen=True)
class Spectrum:
    """The leading eigenvalues of the Hessian at x, and what its dominant subspace has become.

    Attributes:
        size: Rows of the Hessian: the number of scalar parameters, of all or of the hidden matrices.
        values: The leading eigenvalues, largest first: `SPARE` more than the k of the settings, if there are.
        residuals: ||H v - lambda v|| of each.
        products: Matrix-vector products that they took.
        k: Dimension of the dominant subspace; None where no gap was found, and nothing is projected.
        bound: Davis-Kahan bound of its error; None without a subspace.
    """

    size: int
    values: list[float]
    residuals: list[float]
    products: int
    k: int | None
    bound: float | None


@dataclass(frozen=True)
class Measurement:
    """What was measured at one step. Every share is r_dom; r_bulk^2 is 1 - r_dom^2.

    Attributes:
        step: Training steps that were done when it was measured.
        loss: Training loss on the fixed batches at x, y and z.
        spectra: Spectrum of the Hessian of all parameters at "x", and with averaging at "y" and "z"; of the
            block of the hidden matrices at x under "matrices".
        gradients: r_dom of the gradient at x, y and z in the dominant subspace at this point, mean over
            single batches, as training takes them; what has no subspace is left out.
        along: Positions on the segment from z (0) to x (1) with the same of the gradients there, all in the
            dominant subspace at x; None without averaging.
        watched: Updates of the hidden matrices over the steps that follow; None if they have no subspace or
            did not move, as where a schedule has ended.
        inner: <g(y), z - x> over ||g(y)|| ||z - x||, and the share of hidden matrices in which it is
            positive; None without averaging.
        segment: Positions on the segment from z (0) through x (1), and losses; None without averaging.
        plane: The loss around x in a plane with one dominant and one bulk direction; None without a
            subspace.
    """

    step: int
    loss: dict[str, float]
    spectra: dict[str, Spectrum]
    gradients: dict[str, float]
    along: dict[str, list[float]] | None
    watched: Watched | None
    inner: dict[str, float] | None
    segment: dict[str, list[float]] | None
    plane: dict[str, Any] | None

    def sharpness(self, point: str) -> float:
        """Return the largest eigenvalue of the Hessian at x, y or z."""
        return self.spectra.get(point, self.spectra["x"]).values[0]


def measure(
    trainer: Trainer, settings: Settings, after_step: Callable[[], None] = lambda: None
) -> Measurement:
    """Measure around the present step of a run, and take the steps of the window.

    The steps are those that the run would take anyway, bit for bit: what is measured changes nothing.

    Args:
        trainer: The run, on one process, between two steps.
        settings: Dimension of the subspace, batches, length of the window and budget of products.
        after_step: Called after each step of the window.

    Raises:
        ValueError: If the training loss is not deterministic, as with dropout.
    """
    step, points = trainer.step, Points.of(trainer)
    loss = objective(trainer, settings.batches)
    matrices = hidden_matrices(trainer.model)
    averages = any(not torch.equal(points.x[name], points.z[name]) for name in points.x)
    loss.check_determinism(points.x)
    places: dict[str, tuple[Parameters, str | list[str]]] = {"x": (points.x, "*")}
    places |= {"matrices": (points.x, matrices)} if matrices else {}
    places |= {"y": (points.y, "*"), "z": (points.z, "*")} if averages else {}
    spectra: dict[str, Spectrum] = {}
    subspaces: dict[str, Subspace | None] = {}
    shares: dict[str, float] = {}
    for name, (point, only) in places.items():
        operator = hessian(loss, point, only=only, check_determinism=False)
        spectra[name], own = _dominant(operator, settings)
        if own is not None and name in ("x", "y", "z"):
            shares[name] = _share(loss, point, own)
        subspaces[name] = own if name in ("x", "matrices") else None  # the others are not needed any more
    whole = subspaces["x"]
    plane = None if whole is None else Plane(whole, points)
    return Measurement(
        step=step,
        loss={name: rounded(loss.value(point)) for name, point in points.items()},
        spectra=spectra,
        gradients=shares,
        along=_along(loss, points, whole) if averages and whole is not None else None,
        watched=watch(trainer, subspaces.get("matrices"), plane, settings.window, after_step),
        inner=_inner(loss.gradient(points.y), points, matrices) if averages else None,
        segment=_segment(loss, points) if averages else None,
        plane=None if plane is None else _in_plane(loss, points, plane),
    )


def rounded(value: float | Tensor) -> float:
    """Return a number to six digits."""
    return float(f"{float(value):.6g}")


def _dominant(operator: Operator, settings: Settings) -> tuple[Spectrum, Subspace | None]:
    size = operator.coordinates.size
    pairs = eigenpairs(operator, min(settings.k + SPARE, size), tolerance=TOLERANCE, budget=settings.budget)
    try:
        found = dominant_subspace(pairs, min(settings.k, size - 1))
    except ClusterError:
        found = None
    return _spectrum(pairs, found), found


def _spectrum(pairs: Eigenpairs, found: Subspace | None) -> Spectrum:
    return Spectrum(
        size=pairs.coordinates.size,
        values=[rounded(value) for value in pairs.values],
        residuals=[rounded(value) for value in pairs.residuals],
        products=pairs.products,
        k=None if found is None else found.k,
        bound=None if found is None else rounded(found.error_bound),
    )


def _share(loss: Objective, point: Parameters, subspace: Subspace) -> float:
    """r_dom of gradients of single batches, their mean."""
    own = [Objective(loss.loss, [batch]).gradient(point) for batch in loss.batches]
    return rounded(math.fsum(subspace.shares(gradient).dominant for gradient in own) / len(own))


def _along(loss: Objective, points: Points, subspace: Subspace) -> dict[str, list[float]]:
    shares = [_share(loss, between(points.z, points.x, position), subspace) for position in ALONG]
    return {"positions": list(ALONG), "shares": shares}


def _inner(gradient: Parameters, points: Points, matrices: Sequence[str]) -> dict[str, float]:
    away = {name: points.z[name] - points.x[name] for name in points.x}
    products = {name: float((gradient[name] * away[name]).sum(dtype=torch.float64)) for name in away}
    norms = [
        math.sqrt(math.fsum(float(value.double().square().sum()) for value in vector.values()))
        for vector in (gradient, away)
    ]
    positive = [products[name] > 0 for name in matrices]
    found = {"cosine": rounded(math.fsum(products.values()) / math.prod(norms))}
    return found | ({"positive": rounded(sum(positive) / len(positive))} if positive else {})


def _segment(loss: Objective, points: Points) -> dict[str, list[float]]:
    losses = loss_on_segment(loss, points.z, points.x, SEGMENT)
    return {"positions": list(SEGMENT), "losses": [rounded(value) for value in losses]}


def _in_plane(loss: Objective, points: Points, plane: Plane) -> dict[str, Any] | None:
    """The losses on a grid that reaches beyond the trajectories."""
    if plane.directions is None:
        return None
    axes = [[rounded(2 * reach * (n / (GRID - 1) - 0.5)) for n in range(GRID)] for reach in plane.reaches()]
    first, second = plane.directions
    losses = loss_in_plane(loss, points.x, first, second, first_positions=axes[0], second_positions=axes[1])
    return {
        "dominant": axes[0],
        "bulk": axes[1],
        "losses": [[rounded(value) for value in row] for row in losses],
        "paths": {
            name: [[rounded(value) for value in place] for place in path]
            for name, path in plane.paths.items()
            if path
        },
    }
