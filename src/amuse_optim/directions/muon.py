"""Muon: orthogonalized momentum (https://kellerjordan.github.io/posts/muon/)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, get_args

import torch
from torch import Tensor

from amuse_optim import matrices
from amuse_optim.averaging import Tensors
from amuse_optim.buckets import Bucket, Chunk, Row, Slot
from amuse_optim.checks import Option, count, flag, fraction
from amuse_optim.matrices import Place, layout_of, update_scale
from amuse_optim.orthogonalize import (
    ITERATIONS,
    Method,
    batch_entries,
    batches,
    orthogonalize_stack,
    working_dtype_for,
)
from amuse_optim.schedule import Number
from amuse_optim.sharding import gathered, local, own_part

from .base import Direction, Shape, Update


def momentum_average_(
    buffers: Tensors, gradients: Tensors, update: Tensors, momentum: float, nesterov: bool
) -> None:
    """Move m <- mu m + (1 - mu) g; write u = (1 - mu) g + mu m with Nesterov, else u = m.

    Args:
        buffers: m, changed in place.
        gradients: g.
        update: u, written in whatever precision it has.
        momentum: mu in [0, 1).
        nesterov: Whether to look one step ahead.
    """
    torch._foreach_lerp_(buffers, gradients, 1.0 - momentum)
    moved = torch._foreach_lerp(gradients, buffers, momentum) if nesterov else buffers
    torch._foreach_copy_(update, moved)


class Matrices(NamedTuple):
    """Matrices of one shape that lie together in a parameter.

    Args:
        slot: The parameter.
        place: Where in its buffers.
    """

    slot: Slot
    place: Place

    def row(self) -> Row:
        """Their pieces of the parameter's buffers."""
        row = self.slot.row
        if self.place.entries == row["y"].numel():
            return row
        return {name: self.place.of(buffer) for name, buffer in row.items()}


def _method(name: str, value: object) -> None:
    if not callable(value) and value not in get_args(Method):
        allowed = ", ".join(map(repr, get_args(Method)))
        raise ValueError(f"{name} must be one of {allowed}, or a function, got {value!r}")


def _dtype(name: str, value: object) -> None:
    if value not in (None, torch.float32, torch.bfloat16, torch.float64):
        raise ValueError(
            f"{name} must be None, torch.float32, torch.bfloat16 or torch.float64, got {value!r}"
        )


class Muon(Direction):
    r"""d = scale * O, O = orthogonalize(u), u the momentum; for every matrix that a parameter consists of."""

    name = "muon"
    options: ClassVar[Mapping[str, Option]] = {
        "momentum": Option(0.95, fraction),
        "nesterov": Option(True, flag),
        "orthogonalize": Option("quintic", _method),
        "orthogonalize_steps": Option(5, count),
        "orthogonalize_dtype": Option(None, _dtype),
        **matrices.OPTIONS,
    }
    for_matrices = True

    def state_shapes(self, group: Mapping[str, Any], shape: Shape) -> dict[str, Shape]:
        """The momentum.

        Raises:
            ValueError: For a parameter that does not consist of matrices as the options say.
        """
        layout_of(group, shape)
        return {"momentum_buffer": shape}

    def may_raise(self, group: Mapping[str, Any]) -> bool:
        """True for a user's function and for "exact", the singular value decomposition."""
        return callable(group["orthogonalize"]) or group["orthogonalize"] == "exact"

    def finish(self, factors: Tensor, pieces: Sequence[Matrices], bucket: Bucket) -> tuple[Tensor, Number]:
        """Turn polar factors O into updates d / scale; return them and the scale.

        Args:
            factors: O, shape (n, rows, cols); may be changed.
            pieces: The matrices that they belong to, in the same order.
            bucket: The bucket of their parameters.
        """
        return factors, update_scale(factors.shape[1], factors.shape[2], bucket.group["scale"])

    def updates(self, bucket: Bucket) -> Iterator[Update]:
        """Batch by batch, matrices of one shape together."""
        if bucket.sharded:
            yield from self._sharded_updates(bucket)
            return
        for pieces, parts, scale in self._orthogonalized(bucket, bucket.slots):
            for chunk in _cut(bucket, pieces, bucket.sequences, parts):
                yield chunk, chunk.update, scale

    def _momentum(self, bucket: Bucket, pieces: Sequence[Matrices], parts: Sequence[Tensor]) -> None:
        """Move the momentum of matrices and write what is to be orthogonalized into `parts`."""
        for chunk in _cut(bucket, pieces, ("gradient", "momentum_buffer"), parts):
            m, g = chunk.read("momentum_buffer"), chunk.read("gradient")
            momentum_average_(m, g, chunk.update, bucket.group["momentum"], bucket.group["nesterov"])
            chunk.write("momentum_buffer", m)

    def _orthogonalized(
        self, bucket: Bucket, slots: Sequence[Slot], whole: Tensor | None = None
    ) -> Iterator[tuple[list[Matrices], Sequence[Tensor], Number]]:
        """Yield batches of matrices, their updates d / scale as flat tensors, and the scale.

        Args:
            bucket: The bucket of the parameters.
            slots: The parameters whose matrices are orthogonalized.
            whole: The flat input of the orthogonalization for a single parameter, if it was gathered from
                shards; None updates the momentum first and takes it.
        """
        group = bucket.group
        method, steps = group["orthogonalize"], group["orthogonalize_steps"]
        for (rows, cols), found in _by_shape(bucket, slots).items():
            entries = [piece.place.entries for piece in found]
            wanted = group["orthogonalize_dtype"]
            dtype = wanted or working_dtype_for(bucket.dtype, bucket.device, min(rows, cols))
            for pieces in batches(found, entries, bucket.device):
                sizes = [piece.place.entries for piece in pieces]
                shape = (sum(sizes) // (rows * cols), rows, cols)
                kept = dtype if method in ITERATIONS else bucket.dtype
                stack = torch.empty(sum(sizes), dtype=kept, device=bucket.device)
                if whole is None:
                    self._momentum(bucket, pieces, stack.split(sizes))
                else:
                    given = [piece.place.of(whole).reshape(-1) for piece in pieces]
                    torch._foreach_copy_(stack.split(sizes), given)
                stack = stack.view(-1, cols, rows).mT if group["transposed"] else stack.view(shape)
                stack = orthogonalize_stack(stack, method, steps, dtype)
                if bucket.measurement is not None:
                    bucket.measurement.add_polar_factors(stack)
                stack, scale = self.finish(stack, pieces, bucket)
                stored = stack.mT if group["transposed"] else stack
                yield pieces, stored.reshape(-1).split(sizes), scale

    def _sharded_updates(self, bucket: Bucket) -> Iterator[Update]:
        """Parameter by parameter, in the order of all ranks: gathered, orthogonalized, own part kept."""
        for slot in bucket.slots:
            part = torch.empty_like(slot.row["y"], dtype=bucket.dtype)
            self._momentum(bucket, [Matrices(slot, Place(part.numel(), 0))], [part])
            whole = gathered(part.view(local(slot.param).shape), slot.param).view(-1)
            update = torch.empty_like(whole)
            for pieces, parts, scale in self._orthogonalized(bucket, [slot], whole):
                for piece, source in zip(pieces, parts, strict=True):
                    target = piece.place.of(update)
                    target.copy_((source * scale).view_as(target))
            own = own_part(update.view(slot.param.shape), slot.param).reshape(-1)
            for chunk in bucket.cut([slot.row], bucket.sequences, [own]):
                yield chunk, chunk.update, 1.0


def _cut(
    bucket: Bucket, pieces: Sequence[Matrices], names: Sequence[str], parts: Sequence[Tensor]
) -> Iterator[Chunk]:
    """The buffers of matrices in chunks, with a flat tensor for each of them, shaped as its buffers are."""
    rows = [piece.row() for piece in pieces]
    if bucket.group["transposed"]:
        parts = [part.view_as(row[names[0]]) for part, row in zip(parts, rows, strict=True)]
    return bucket.cut(rows, names, parts)


def _by_shape(bucket: Bucket, slots: Sequence[Slot]) -> dict[tuple[int, int], list[Matrices]]:
    """The matrices of parameters by shape, in pieces none of which is larger than a batch."""
    shapes: dict[tuple[int, int], list[Matrices]] = {}
    bound = batch_entries(bucket.device)
    for slot in slots:
        for shape, place in layout_of(bucket.group, slot.param.shape).places(bound):
            shapes.setdefault(shape, []).append(Matrices(slot, place))
    return shapes
