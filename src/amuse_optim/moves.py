"""One parameter's part of a step: gradient and state in, momenta, z, x and y moved."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from . import directions, sequences
from .layout import Layout
from .orthogonalize import orthogonalize_all
from .precision import rounding_generator, store_, working
from .schedule import Coefficients
from .settings import Group
from .state import State

# Every tensor of the state is rounded with random bits of its own, by its place in this list.
_STORED = ("z", "x", "momentum_buffer", "exp_avg_sq", "exp_avg")


@dataclass(frozen=True)
class Member:
    """A parameter in one step.

    Args:
        parameter: Holds y.
        gradient: Read only.
        state: Its state.
        place: Index of its group and its index in it.
    """

    parameter: Tensor
    gradient: Tensor
    state: State
    place: tuple[int, int]

    @property
    def in_full_precision(self) -> bool:
        """Whether y and z can be moved where they are."""
        z: Tensor = self.state["z"]
        return z.dtype == self.parameter.dtype and "x" not in self.state

    def working_gradient(self) -> Tensor:
        """The gradient in the dtype of the computation."""
        return working(self.gradient.to(self.parameter.dtype))

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


def adamw(group: Group, member: Member) -> Tensor:
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
        blocks += layout.split(update)
    return orthogonalize_all(
        blocks,
        method=group["orthogonalize"],
        steps=group["orthogonalize_steps"],
        dtype=group["orthogonalize_dtype"],
    )


def scaled(group: Group, layouts: list[Layout], stacks: list[Tensor]) -> list[Tensor]:
    """The Muon directions of a group: every block times the scale of its matrices, put together."""
    remaining = iter(stacks)
    return [
        layout.join(
            [
                next(remaining) * directions.update_scale(rows, cols, group["scale"])
                for _, rows, cols in layout.blocks
            ]
        )
        for layout in layouts
    ]


def move(member: Member, direction: Tensor, group: Group, now: Coefficients) -> None:
    """Move z, x and y of one parameter."""
    y, state = member.parameter, member.state
    # The released code decodes x with the new beta from a y that was built with the old one.
    decode = now.beta if group["parity"] == "published" else state["beta"]
    decay, at = group["weight_decay"], group["weight_decay_at"]
    if member.in_full_precision:
        sequences.advance_(
            y,
            state["z"],
            direction,
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
                x = sequences.interpolate(z, working(state["x"]), state["beta"] / decode)
            else:
                x = sequences.recover(y, z, decode)
            sequences.descend_(z, working(y), direction, lr=now.lr, weight_decay=decay, at=at)
        z = working(state["z"])  # as it was stored: y is built from what x will be recovered with
        x = sequences.average(x, z, now.c)
        if "x" in state:
            member.store("x", x)
            x = working(state["x"])
        y.copy_(sequences.interpolate(z, x, now.beta))
    state["beta"] = now.beta
