"""What `telemetry` asks to be measured within a step, because it needs the updates."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .members import Members
from .orthogonalize import orthogonality_errors
from .precision import working
from .schedule import Number
from .sharding import copies, local, mesh_of, summed


class Measurement:
    """Gathers, over one step of one group, the size of its updates and the errors of its polar factors.

    Attributes:
        divided: Errors of the matrices of this rank, where ranks divide such matrices among them.
        sums: The sum of the errors over all these ranks and how many there are, a pair for each set of ranks,
            from `sum_over_ranks`.
    """

    def __init__(self) -> None:
        self._updates: list[tuple[Any, Tensor, float]] = []
        self._errors: list[Tensor] = []
        self.divided: dict[Members, list[Tensor]] = {}
        self.sums: list[Tensor] = []

    def add_update(self, parameter: Tensor, update: Sequence[Tensor], scale: Number) -> None:
        """Take in updates d / scale and their scale.

        Args:
            parameter: A parameter that lies on the ranks as those do whose updates these are.
            update: The updates divided by their scale, d / scale, one tensor for each piece of a chunk.
            scale: The common factor that turns these tensors into the updates d.
        """
        for tensor in update:
            square = torch.linalg.vector_norm(working(tensor)).mul(scale).square()
            share = copies(parameter)
            self._updates.append((mesh_of(parameter), square / share, tensor.numel() / share))

    def add_polar_factors(self, *stacks: Tensor, members: Members | None = None) -> None:
        """Take in orthogonalized matrices.

        Args:
            stacks: Orthogonalized matrices of one shape each, stacks of shape (n, rows, cols).
            members: The ranks that divide such matrices among them, none of which has to have any.
        """
        kept = self._errors if members is None else self.divided.setdefault(members, [])
        kept.extend(orthogonality_errors(stack) for stack in stacks)

    def values(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """The root mean squares over all of it, and over the ranks that the parameters are divided over."""
        like = working(local(parameters[0]))
        parts = [(mesh, torch.stack([s, torch.full_like(s, n)])) for mesh, s, n in self._updates]
        total, entries = summed(parts, parameters, 2)
        found = {"update_rms": (total / entries).sqrt()}
        if self._errors or self.sums:
            errors = torch.cat([like.new_empty(0), *(errors.to(like) for errors in self._errors)])
            own = torch.stack([errors.sum(), torch.full_like(errors.sum(), len(errors))])
            error, count = torch.stack([own, *(sums.to(own) for sums in self.sums)]).sum(dim=0)
            found["orthogonality_error"] = (error / count).sqrt()
        return found


def sum_over_ranks(measurements: Iterable[Measurement], device: torch.device) -> None:
    """Add up the errors of matrices that ranks divide among them, in one collective for each set of ranks.

    Args:
        measurements: The measurements of all groups; every rank calls this with its own.
        device: What the collectives are done on.
    """
    shared: dict[Members, list[Measurement]] = {}
    for measurement in measurements:
        for members in measurement.divided:
            shared.setdefault(members, []).append(measurement)
    for members, some in shared.items():
        dtype = torch.float32 if device.type == "mps" else torch.float64  # which MPS does not have
        own = torch.zeros(len(some), 2, dtype=dtype, device=device)
        for place, measurement in zip(own, some, strict=True):
            for errors in measurement.divided[members]:
                place += torch.stack([errors.sum(), errors.new_tensor(len(errors))]).to(place)
        for sums, measurement in zip(members.summed(own), some, strict=True):
            measurement.sums.append(sums)
