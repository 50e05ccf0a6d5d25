"""The moves of plain float32 and float64 parameters: many together, in operations on lists.

The arithmetic is that of `moves.py`, in another order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import directions, tiles
from .distributed import is_sharded
from .moves import MOMENTA, Measurement, Member
from .orthogonalize import batch_entries, orthogonalize_stack, working_dtype
from .schedule import Coefficients, CoefficientsOnDevice
from .settings import Group, describe, layout_of


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
    momenta = [state[name] for name in MOMENTA if name in state]
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
