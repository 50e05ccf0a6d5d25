"""The moves of a step: gradients and states in, momenta, z, x and y moved.

Plain float32 and float64 parameters move together (`advance_together`), all others one at a time
(`directions_of` and `move`), which is the same arithmetic and its specification.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from . import directions, sequences, tiles
from .distributed import LocalState, gathered, is_sharded, local, own_part, summed
from .layout import Layout
from .orthogonalize import (
    batch_entries,
    orthogonality_errors,
    orthogonalize_all,
    orthogonalize_stack,
    working_dtype,
)
from .precision import rounding_generator, store_, working
from .schedule import Coefficients, CoefficientsOnDevice
from .settings import Group, describe, layout_of
from .state import State

# A direction d as a tensor and its factor, which lies on the device where the schedule does.
Move = tuple[Tensor, float]

# Every tensor of the state is rounded with random bits of its own, by its place in this list.
_MOMENTA = ("momentum_buffer", "exp_avg_sq", "exp_avg")
_STORED = ("z", "x", *_MOMENTA)


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


@dataclass(frozen=True)
class Flat:
    """A member whose tensors are plain, in one full precision and in one dense memory format.

    Args:
        member: The member.
        columns: One-dimensional views of y, gradient, z and the momenta, in this order.
    """

    member: Member
    columns: list[Tensor]


def together_or_apart(group: Group, members: Sequence[Member]) -> tuple[list[list[Flat]], list[Member]]:
    """Members that can move together, in lists of one device, dtype, step and beta; and the others."""
    alike: dict[object, list[Flat]] = {}
    apart: list[Member] = []
    for member in members:
        # Sharded matrices are gathered one by one, in the order that all ranks have.
        gathering = group["direction"] == "muon" and is_sharded(member.whole)
        columns = None if group["foreach"] is False or gathering else _flat_columns(group, member)
        if columns is None:
            apart.append(member)
        else:
            y, state = member.parameter, member.state
            numbers = [state["step"], state["beta"]]
            if group["capturable"]:  # on the device: alike where they are the same tensors
                numbers = [id(number) for number in numbers]
            alike.setdefault((y.device, y.dtype, *numbers), []).append(Flat(member, columns))
    return list(alike.values()), apart


def check_together(group: Group, members: Sequence[Member]) -> None:
    """Refuse parameters that `together_or_apart` would move apart.

    Raises:
        ValueError: With the parameter that is not plain.
    """
    for member in members:
        gathering = group["direction"] == "muon" and is_sharded(member.whole)
        if gathering or _flat_columns(group, member) is None:
            raise ValueError(
                f"{describe(group, member.place[1])} cannot take part with capturable=True: it, its gradient "
                "and its state must be plain dense tensors of one precision and memory format, and matrices "
                "must not be sharded"
            )
    devices = sorted({str(member.parameter.device) for member in members})
    if len(devices) > 1:
        raise ValueError(
            f"with capturable=True a group must be on one device, not on {', '.join(devices)}: its schedule "
            "is there too. Make a group for each"
        )


def _flat_columns(group: Group, member: Member) -> list[Tensor] | None:
    """The columns of `Flat`, or None if they do not exist."""
    y, gradient, state = member.parameter, member.gradient, member.state
    if type(y) not in (Tensor, torch.nn.Parameter) or type(gradient) is not Tensor:
        return None
    if not member.in_full_precision or gradient.dtype != y.dtype or y.numel() == 0:
        return None
    momenta = [state[name] for name in _MOMENTA if name in state]
    return tiles.flat([y, gradient, state["z"], *momenta], channels_last=not group["stacked"])


def advance_together(
    group: Group,
    members: list[Flat],
    now: Coefficients | CoefficientsOnDevice,
    measurement: Measurement | None,
) -> None:
    """Take the whole step of members that `together_or_apart` put into one list."""
    state = members[0].member.state
    # The released code decodes x with the new beta from a y that was built with the old one.
    decode = now.beta if group["parity"] == "published" else state["beta"]
    for ys, zs, ds, scale in _directions_together(group, members, measurement):
        tiles.advance_(
            ys,
            zs,
            ds,
            scale=scale,
            lr=now.lr,
            weight_decay=group["weight_decay"],
            at=group["weight_decay_at"],
            beta=decode,
            c=now.c,
            beta_next=now.beta,
        )
    if group["capturable"]:
        state["beta"].copy_(now.beta)  # which all of them share
    else:
        for flat in members:
            flat.member.state["beta"] = now.beta


def _directions_together(
    group: Group, members: list[Flat], measurement: Measurement | None
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor], float | Tensor]]:
    """y, z, the direction and its factor, a tile at a time; updates the momenta."""
    if group["direction"] == "muon":
        for (rows, cols), pieces in _pieces_by_shape(group, members).items():
            scale = directions.update_scale(rows, cols, group["scale"])
            for batch in _batches_of_pieces(pieces):
                stack = _orthogonal_stack(group, batch, rows, cols)
                if measurement is not None:
                    measurement.add([(stack, scale)], [stack])
                ys, _, zs, _ = zip(*batch, strict=True)
                parts = stack.view(-1).split([len(y) for y in ys])
                for y_tile, z_tile, d_tile in tiles.tiles(ys, zs, parts):
                    yield y_tile, z_tile, d_tile, scale
        return
    columns = zip(*(flat.columns for flat in members), strict=True)
    for y_tile, gradients, z_tile, *moments in tiles.tiles(*columns):
        found: tuple[list[Tensor], float | Tensor] = gradients, 1.0
        if group["direction"] == "adamw":
            found = tiles.adamw_direction(
                gradients,
                moments[0],
                members[0].member.state["step"],
                beta2=group["beta2"],
                eps=group["eps"],
                first_moments=moments[1] if len(moments) > 1 else None,
                momentum=group["auxiliary_momentum"],
            )
        d_tile, factor = found
        if measurement is not None:
            measurement.add([(d, factor) for d in d_tile], [])
        yield y_tile, z_tile, d_tile, factor


def _pieces_by_shape(group: Group, members: list[Flat]) -> dict[tuple[int, int], list[list[Tensor]]]:
    """The columns of all members, cut into stacks of matrices, by shape; none is larger than a batch."""
    shapes: dict[tuple[int, int], list[list[Tensor]]] = {}
    bound = batch_entries(members[0].columns[0].device)
    for flat in members:
        start = 0
        for count, rows, cols in layout_of(group, flat.member.whole).blocks:
            pieces = shapes.setdefault((rows, cols), [])
            end = start + count * rows * cols
            limit = max(1, bound // (rows * cols)) * rows * cols
            if end - start == len(flat.columns[0]) <= limit:  # all of it, which is the usual case
                pieces.append(flat.columns)
            else:
                for first in range(start, end, limit):
                    pieces.append([column[first : min(first + limit, end)] for column in flat.columns])
            start = end
    return shapes


def _batches_of_pieces(pieces: list[list[Tensor]]) -> Iterator[list[list[Tensor]]]:
    """Cut a list evenly into batches of about `batch_entries`, which bounds the memory of a step."""
    total = sum(len(piece[0]) for piece in pieces)
    count = max(1, round(total / batch_entries(pieces[0][0].device)))
    batch: list[list[Tensor]] = []
    entries = 0
    for piece in pieces:
        batch.append(piece)
        entries += len(piece[0])
        if entries * count >= total:
            yield batch
            batch, entries = [], 0
    if batch:
        yield batch


def _orthogonal_stack(group: Group, batch: list[list[Tensor]], rows: int, cols: int) -> Tensor:
    """The orthogonalized momentum of a batch, shape (n, rows, cols); updates the momentum."""
    _, gradients, _, buffers = zip(*batch, strict=True)
    sizes = [len(buffer) for buffer in buffers]
    like = buffers[0].view(-1, rows, cols)
    dtype = group["orthogonalize_dtype"] or working_dtype(like)
    stack = like.new_empty((sum(sizes) // (rows * cols), rows, cols), dtype=dtype)
    for tile in tiles.tiles(buffers, gradients, stack.view(-1).split(sizes)):
        momenta, fresh, updates = tile
        tiles.momentum_average_(momenta, fresh, updates, group["momentum"], nesterov=group["nesterov"])
    return orthogonalize_stack(stack, group["orthogonalize"], group["orthogonalize_steps"], dtype)


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
