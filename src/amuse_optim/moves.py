"""The moves of a step: gradients and states in, momenta, z, x and y moved.

Here one parameter at a time (`directions_of` and `move`), which is the specification of the arithmetic; plain
float32 and float64 parameters move together, see `together.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from . import directions, sequences
from .distributed import LocalState, gathered, is_sharded, local, own_part, summed
from .layout import Layout
from .orthogonalize import (
    batch_entries,
    orthogonality_errors,
    orthogonalize_all,
)
from .precision import rounding_generator, store_, working
from .schedule import Coefficients
from .settings import Group, layout_of
from .state import State

# A direction d as a tensor and its factor, which lies on the device where the schedule does.
Move = tuple[Tensor, float]

# Every tensor of the state is rounded with random bits of its own, by its place in this list.
MOMENTA = ("momentum_buffer", "exp_avg_sq", "exp_avg")
_STORED = ("z", "x", *MOMENTA)


@dataclass(frozen=True)
class Member:
    """A parameter in one step; of a sharded one, this rank's part.

    Args:
        parameter: Holds y.
        gradient: Read only.
        state: Its state.
        place: Index of its group and its index in it.
        whole: The parameter itself, for its shape and how it is sharded.
    """

    parameter: Tensor
    gradient: Tensor
    state: State
    place: tuple[int, int]
    whole: Tensor

    @classmethod
    def of(cls, parameter: Tensor, state: State, place: tuple[int, int]) -> "Member":
        """The member of a parameter with a gradient."""
        assert parameter.grad is not None
        if is_sharded(parameter):
            return cls(local(parameter), local(parameter.grad), LocalState(state), place, parameter)
        return cls(parameter, parameter.grad, state, place, parameter)

    @property
    def in_full_precision(self) -> bool:
        """Whether y and z can be moved where they are."""
        z: Tensor = self.state["z"]
        return z.dtype == self.parameter.dtype and "x" not in self.state

    def working_gradient(self) -> Tensor:
        """The gradient in the dtype of the computation: z's, but at least float32."""
        kept: Tensor = self.state["z"]
        return self.gradient.to(kept.dtype if torch.finfo(kept.dtype).bits >= 32 else torch.float32)

    def store(self, name: str, value: Tensor) -> None:
        """Write a tensor of the state back in the precision it is kept in."""
        target: Tensor = self.state[name]
        rounding = None
        if target.dtype == torch.bfloat16:
            slot = _STORED.index(name)
            rounding = rounding_generator(target.device, *self.place, self.state["step"], slot)
        store_(target, value, rounding)

    @contextmanager
    def unpacked(self, *names: str) -> Iterator[State]:
        """Tensors of the state (those that exist) to compute with in place; stored at the end."""
        present = {name: working(self.state[name]) for name in names if name in self.state}
        yield present
        for name, value in present.items():
            self.store(name, value)


class Measurement:
    """What `telemetry` wants to know of a group's directions, gathered batch by batch."""

    def __init__(self) -> None:
        self._squares: list[Tensor] = []
        self._entries = 0
        self._errors: list[Tensor] = []

    def add(self, found: Sequence[tuple[Tensor, float | Tensor]], stacks: Sequence[Tensor]) -> None:
        """Take in the directions of a batch, and its orthogonalized matrices where it has some."""
        for tensor, scale in found:
            self._squares.append(torch.linalg.vector_norm(working(tensor)).mul(scale).square())
            self._entries += tensor.numel()
        if stacks:
            self._errors.append(orthogonality_errors(stacks))

    def values(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """The root mean squares over all batches, and over the ranks that share the parameters."""
        device = self._squares[0].device
        squares = torch.stack([square.to(device) for square in self._squares]).sum()
        sums = torch.stack([squares, torch.full_like(squares, self._entries)])
        total, entries = summed(sums, parameters)
        found = {"update_rms": (total / entries).sqrt()}
        if self._errors:
            found["orthogonality_error"] = torch.cat([e.to(device) for e in self._errors]).mean().sqrt()
        return found


def batches(group: Group, members: list[Member]) -> Iterator[list[Member]]:
    """Cut a group into batches of about `batch_entries`, matrices of like shape together.

    Directions exist for one batch at a time, which bounds the memory of a step.
    """
    if group["direction"] != "muon":
        yield from ([member] for member in members)
        return
    batch: list[Member] = []
    entries = 0
    for member in sorted(members, key=lambda member: member.whole.shape):
        if batch and entries + member.whole.numel() > batch_entries(member.parameter.device):
            yield batch
            batch, entries = [], 0
        batch.append(member)
        entries += member.whole.numel()
    if batch:
        yield batch


def directions_by_batch(
    group: Group, members: list[Member], measurement: Measurement | None
) -> Iterator[tuple[Member, Move]]:
    """Every member with its direction, a batch at a time; updates the momenta."""
    for batch in batches(group, members):
        yield from zip(batch, directions_of(group, batch, measurement), strict=True)


def directions_of(group: Group, batch: list[Member], measurement: Measurement | None) -> list[Move]:
    """The directions of a batch; updates the momenta."""
    stacks: list[Tensor] = []
    if group["direction"] == "muon":
        layouts = [layout_of(group, member.whole) for member in batch]
        stacks = orthogonal_stacks(group, layouts, batch)
        found = [
            (own_part(tensor, member.whole), scale) if is_sharded(member.whole) else (tensor, scale)
            for member, (tensor, scale) in zip(batch, scaled(group, layouts, stacks), strict=True)
        ]
    elif group["direction"] == "adamw":
        found = [adamw(group, member) for member in batch]
    else:
        found = [(member.working_gradient(), 1.0) for member in batch]
    if measurement is not None:
        measurement.add(found, stacks)
    return found


def adamw(group: Group, member: Member) -> Move:
    """The AdamW direction of a parameter; updates its moments."""
    with member.unpacked("exp_avg_sq", "exp_avg") as moments:
        return directions.adamw_direction(
            member.working_gradient(),
            moments["exp_avg_sq"],
            member.state["step"],
            beta2=group["beta2"],
            eps=group["eps"],
            first_moment=moments.get("exp_avg"),
            momentum=group["auxiliary_momentum"],
        )


def orthogonal_stacks(group: Group, layouts: list[Layout], members: list[Member]) -> list[Tensor]:
    """The orthogonalized momentum of a group, block by block; updates the momentum."""
    blocks: list[Tensor] = []
    for layout, member in zip(layouts, members, strict=True):
        with member.unpacked("momentum_buffer") as state:
            update = directions.momentum_average_(
                state["momentum_buffer"],
                member.working_gradient(),
                group["momentum"],
                nesterov=group["nesterov"],
            )
        blocks += layout.split(gathered(update, member.whole) if is_sharded(member.whole) else update)
    return orthogonalize_all(
        blocks,
        method=group["orthogonalize"],
        steps=group["orthogonalize_steps"],
        dtype=group["orthogonalize_dtype"],
    )


def scaled(group: Group, layouts: list[Layout], stacks: list[Tensor]) -> list[Move]:
    """The Muon directions: every block times the scale of its matrices, put together."""
    remaining = iter(stacks)
    found: list[Move] = []
    for layout in layouts:
        scales = [directions.update_scale(rows, cols, group["scale"]) for _, rows, cols in layout.blocks]
        blocks = [next(remaining) for _ in scales]
        if len(set(scales)) == 1:
            found.append((layout.join(blocks), scales[0]))
        else:
            found.append((layout.join([b * scale for b, scale in zip(blocks, scales, strict=True)]), 1.0))
    return found


def move(member: Member, direction: Move, group: Group, now: Coefficients) -> None:
    """Move z, x and y of one parameter."""
    y, state = member.parameter, member.state
    tensor, scale = direction
    # The released code decodes x with the new beta from a y that was built with the old one.
    decode = now.beta if group["parity"] == "published" else state["beta"]
    decay, at = group["weight_decay"], group["weight_decay_at"]
    if member.in_full_precision:
        sequences.advance_(
            y,
            state["z"],
            tensor,
            scale=scale,
            lr=now.lr,
            weight_decay=decay,
            at=at,
            beta=decode,
            c=now.c,
            beta_next=now.beta,
        )
    else:
        with member.unpacked("z") as fast:
            z = fast["z"]
            if "x" in state:
                x = working(state["x"])
                if decode != state["beta"]:
                    x = sequences.interpolate(z, x, state["beta"] / decode)
            else:
                x = sequences.recover(y, z, decode)
            sequences.descend_(z, x, tensor, scale=scale, lr=now.lr, weight_decay=decay, at=at, beta=decode)
        z = working(state["z"])  # as it was stored: y is built from what x will be recovered with
        x = sequences.average(x, z, now.c)
        if "x" in state:
            member.store("x", x)
            x = working(state["x"])
        y.copy_(sequences.interpolate(z, x, now.beta))
    state["beta"] = now.beta
