"""What `telemetry` asks to be measured within a step, because it needs the updates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .exchange import Members
from .orthogonalize import orthogonality_errors
from .precision import working
from .schedule import Number
from .sharding import local, summed


class Measurement:
    """Gathers, over one step of one group, the size of its updates and the errors of its polar factors."""

    def __init__(self) -> None:
        self._squares: list[Tensor] = []
        self._entries = 0.0
        self._errors: dict[Members | None, list[Tensor]] = {}

    def add_update(self, update: Sequence[Tensor], scale: Number, copies: int = 1) -> None:
        """Take in updates d / scale and their scale.

        Args:
            update: The updates.
            scale: Their scale.
            copies: The number of ranks that have the same ones.
        """
        for tensor in update:
            square = torch.linalg.vector_norm(working(tensor)).mul(scale).square()
            self._squares.append(square / copies if copies > 1 else square)
            self._entries += tensor.numel() / copies

    def add_polar_factors(self, *stacks: Tensor, members: Members | None = None) -> None:
        """Take in orthogonalized matrices.

        Args:
            stacks: Of shape (n, rows, cols).
            members: The ranks that divide such matrices among them, none of which has to have any.
        """
        errors = [orthogonality_errors(stack) for stack in stacks]
        self._errors.setdefault(members, []).extend(errors)

    def values(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """The root mean squares over all of it, and over the ranks that share the parameters."""
        like = working(local(parameters[0]))
        squares = torch.stack([like.new_zeros(()), *(square.to(like) for square in self._squares)]).sum()
        sums = torch.stack([squares, torch.full_like(squares, self._entries)])
        total, entries = summed(sums, parameters)
        found = {"update_rms": (total / entries).sqrt()}
        if self._errors.keys() == {None}:
            errors = torch.cat([errors.to(like) for errors in self._errors[None]])
            found["orthogonality_error"] = errors.mean().sqrt()
        elif self._errors:
            sums = like.new_zeros(2)
            for members, some in self._errors.items():
                errors = torch.cat([like.new_empty(0), *(errors.to(like) for errors in some)])
                own = torch.stack([errors.sum(), torch.full_like(squares, len(errors))])
                sums += own if members is None else members.summed(own)
            found["orthogonality_error"] = (sums[0] / sums[1]).sqrt()
        return found
