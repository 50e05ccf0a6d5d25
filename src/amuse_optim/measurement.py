"""What `telemetry` asks to be measured within a step, because it needs the updates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .orthogonalize import orthogonality_errors
from .precision import working
from .schedule import Number
from .sharding import local, summed


class Measurement:
    """Gathers, over one step of one group, the size of its updates and the errors of its polar factors."""

    def __init__(self) -> None:
        self._squares: list[Tensor] = []
        self._entries = 0
        self._errors: list[Tensor] = []

    def add_update(self, update: Sequence[Tensor], scale: Number) -> None:
        """Take in updates d / scale and their scale."""
        for tensor in update:
            self._squares.append(torch.linalg.vector_norm(working(tensor)).mul(scale).square())
            self._entries += tensor.numel()

    def add_polar_factors(self, stack: Tensor) -> None:
        """Take in orthogonalized matrices, shape (n, rows, cols)."""
        self._errors.append(orthogonality_errors(stack))

    def values(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """The root mean squares over all of it, and over the ranks that share the parameters."""
        like = working(local(parameters[0]))
        squares = torch.stack([like.new_zeros(()), *(square.to(like) for square in self._squares)]).sum()
        sums = torch.stack([squares, torch.full_like(squares, self._entries)])
        total, entries = summed(sums, parameters)
        found = {"update_rms": (total / entries).sqrt()}
        if self._errors:
            found["orthogonality_error"] = (
                torch.cat([errors.to(like) for errors in self._errors]).mean().sqrt()
            )
        return found
