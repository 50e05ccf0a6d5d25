"""What vectors of a training run have to do with curvature, and the loss along lines and planes."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .objective import Objective, Parameters
from .subspaces import Parts, Subspace, Vector


def shares(subspace: Subspace, vectors: Mapping[str, Vector]) -> dict[str, Parts]:
    """r_dom and r_bulk of several vectors, such as gradients at x, y and z, the momentum, the update.

    Args:
        subspace: The dominant subspace, from `dominant_subspace`.
        vectors: Vectors by name, each of shape (size,) or named tensors; none zero.

    Returns:
        The shares by the same names.
    """
    return {name: subspace.shares(vector) for name, vector in vectors.items()}


def cosines(subspace: Subspace, updates: Sequence[Vector]) -> list[Parts]:
    """Cosines of consecutive updates within the dominant subspace and within the bulk.

    Near -1 the updates oscillate there, near 1 they keep their way.

    Args:
        subspace: The dominant subspace, from `dominant_subspace`.
        updates: At least two updates, in the order of the steps.

    Returns:
        For each update but the first, its cosine with the one before; nan where a part is zero.
    """
    parts = [subspace.split(update) for update in updates]
    return [
        Parts(*(_cosine(one, other) for one, other in zip(before, after, strict=True)))
        for before, after in pairwise(parts)
    ]


def _cosine(one: Tensor, other: Tensor) -> float:
    one, other = one.double(), other.double()
    return float(torch.dot(one, other) / (one.norm() * other.norm()))


def effective_rank(matrix: Tensor) -> float:
    r"""The effective rank of a matrix (Roy and Vetterli, EUSIPCO 2007).

    .. code-block:: text

        exp(- sum_i p_i log p_i),    p_i = sigma_i / sum_j sigma_j

    It is r for r equal singular values and zeros.

    Args:
        matrix: A matrix of shape (rows, cols), not all zeros.

    Raises:
        ValueError: If it is zero or not a matrix.

    Example:
        >>> import torch
        >>> from amuse_optim.landscape import effective_rank
        >>> round(effective_rank(torch.eye(3, 5)), 6)
        3.0
    """
    if matrix.dim() != 2 or not matrix.any():
        raise ValueError(f"matrix must be two-dimensional and not zero, got shape {tuple(matrix.shape)}")
    values = torch.linalg.svdvals(matrix.double())
    return float(torch.special.entr(values / values.sum()).sum().exp())


def loss_on_segment(
    objective: Objective, start: Parameters, end: Parameters, positions: Sequence[float]
) -> Tensor:
    """The loss at (1 - t) start + t end: 0 is the start, 1 the end, more or less lies beyond.

    Args:
        objective: The loss over fixed batches.
        start: Parameters by name, such as z.
        end: Parameters of the same names, such as x.
        positions: The values of t, also below 0 or above 1.

    Returns:
        The losses, shape (positions,), float64 on the CPU.
    """
    return _losses(objective, start, [({name: end[name] - start[name] for name in start}, positions)])


def loss_in_plane(
    objective: Objective,
    origin: Parameters,
    first: Parameters,
    second: Parameters,
    *,
    first_positions: Sequence[float],
    second_positions: Sequence[float],
) -> Tensor:
    """The loss at origin + a first + b second.

    Args:
        objective: The loss over fixed batches.
        origin: Parameters by name, such as x.
        first: A direction by the same names, such as the dominant part of z - x.
        second: Another, such as its bulk part.
        first_positions: The values of a, how many times `first` is added.
        second_positions: The values of b, how many times `second` is added.

    Returns:
        The losses, shape (first_positions, second_positions), float64 on the CPU.
    """
    return _losses(objective, origin, [(first, first_positions), (second, second_positions)])


@torch.no_grad()
def _losses(
    objective: Objective, point: Parameters, axes: Sequence[tuple[Parameters, Sequence[float]]]
) -> Tensor:
    """The losses on a grid along several directions, one dimension for each."""
    if not axes:
        return objective.value(point).to("cpu", torch.float64)
    (direction, positions), *others = axes
    moved = (
        {name: value + position * direction[name] for name, value in point.items()} for position in positions
    )
    return torch.stack([_losses(objective, there, others) for there in moved])
