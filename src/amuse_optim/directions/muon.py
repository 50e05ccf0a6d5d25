"""Muon: orthogonalized momentum (https://kellerjordan.github.io/posts/muon/)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
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

from .base import Direction, Shape, Update
from .divided import divided_updates


def momentum_average_(
    buffers: Tensors, gradients: Tensors, update: Tensors, momentum: float, nesterov: bool
) -> None:
    """Move m <- mu m + (1 - mu) g; write u = (1 - mu) g + mu m with Nesterov, else u = m.

    Args:
        buffers: The momenta m, one tensor for each gradient, of its shape and dtype; changed in place.
        gradients: The gradients g, not changed.
        update: u, written in whatever precision it has.
        momentum: mu, the decay of the momentum, in [0, 1); 0 gives u = g.
        nesterov: Whether to look one step ahead.
    """
    torch._foreach_lerp_(buffers, gradients, 1.0 - momentum)
    moved = torch._foreach_lerp(gradients, buffers, momentum) if nesterov else buffers
    torch._foreach_copy_(update, moved)


class Matrices(NamedTuple):
    """Matrices of one shape that lie together in a parameter.

    Args:
        slot: The parameter, with its buffers.
        place: Where the matrices lie in each of these buffers.
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
    # What subclasses keep for every row of every matrix, of the layout's `row_shape`.
    row_state: ClassVar[tuple[str, ...]] = ()

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

    def scale(self, group: Mapping[str, Any], rows: int, cols: int) -> Number:
        """The common factor of the updates of matrices of this shape."""
        return update_scale(rows, cols, group["scale"])

    def finish(self, factors: Tensor, row_state: Sequence[Tensor], bucket: Bucket) -> Tensor:
        """Turn polar factors O into updates d / scale.

        Args:
            factors: O, shape (n, rows, cols); may be changed.
            row_state: For every name in `row_state` what is kept for the rows of these matrices, shape
                (n, rows), float32 or float64; changed in place.
            bucket: The bucket of their parameters.
        """
        return factors

    def updates(self, bucket: Bucket) -> Iterator[Update]:
        """Batch by batch, matrices of one shape together."""
        if bucket.division is not None and bucket.slots[0].param in bucket.division.shared:
            yield from divided_updates(self, bucket, bucket.division)
            return
        for pieces, parts, scale in self._orthogonalized(bucket):
            for chunk in _cut(bucket, pieces, bucket.sequences, parts):
                yield chunk, chunk.update, scale

    def _momentum(self, bucket: Bucket, pieces: Sequence[Matrices], parts: Sequence[Tensor]) -> None:
        """Move the momentum of matrices and write what is to be orthogonalized into `parts`."""
        for chunk in _cut(bucket, pieces, ("gradient", "momentum_buffer"), parts):
            m, g = chunk.read("momentum_buffer"), chunk.read("gradient")
            momentum_average_(m, g, chunk.update, bucket.group["momentum"], bucket.group["nesterov"])
            chunk.write("momentum_buffer", m)

    def move_momentum(self, bucket: Bucket, slots: Sequence[Slot], parts: Sequence[Tensor]) -> None:
        """Move the momentum of whole parameters and write what is to be orthogonalized into `parts`."""
        self._momentum(bucket, [Matrices(slot, Place(len(slot.row["y"]), 0)) for slot in slots], parts)

    def travelling_dtype(self, bucket: Bucket, shapes: Iterable[tuple[int, int]]) -> torch.dtype:
        """The dtype in which matrices of these shapes, and what is kept for their rows, are exchanged."""
        dtypes = [bucket.dtype] if self.row_state else [_kept(bucket, *shape) for shape in shapes]
        return reduce(torch.promote_types, dtypes)

    def _orthogonalized(self, bucket: Bucket) -> Iterator[tuple[list[Matrices], Sequence[Tensor], Number]]:
        """Yield batches of matrices, their updates d / scale as flat tensors, and the scale."""
        group = bucket.group
        for (rows, cols), found in _by_shape(bucket).items():
            entries = [piece.place.entries for piece in found]
            for pieces in batches(found, entries, bucket.device):
                sizes = [piece.place.entries for piece in pieces]
                shape = (sum(sizes) // (rows * cols), rows, cols)
                stack = torch.empty(sum(sizes), dtype=_kept(bucket, rows, cols), device=bucket.device)
                self._momentum(bucket, pieces, stack.split(sizes))
                stack = stack.view(-1, cols, rows).mT if group["transposed"] else stack.view(shape)
                stack = self.polar_factors(bucket, stack)
                if bucket.measurement is not None:
                    bucket.measurement.add_polar_factors(stack)
                stack = self._finished(stack, pieces, bucket)
                stored = stack.mT if group["transposed"] else stack
                yield pieces, stored.reshape(-1).split(sizes), self.scale(group, rows, cols)

    def _finished(self, factors: Tensor, pieces: Sequence[Matrices], bucket: Bucket) -> Tensor:
        """`finish` with what is kept for the rows of these matrices, which is stored again."""
        _, rows, cols = factors.shape
        stored = [
            [
                piece.slot.state[name].view(-1)[piece.place.row :][: piece.place.entries // cols]
                for piece in pieces
            ]
            for name in self.row_state
        ]
        kept = [torch.cat(parts).to(bucket.dtype).view(-1, rows) for parts in stored]
        factors = self.finish(factors, kept, bucket)
        for parts, value in zip(stored, kept, strict=True):
            torch._foreach_copy_(parts, value.view(-1).split([len(part) for part in parts]))
        return factors

    def polar_factors(self, bucket: Bucket, stack: Tensor) -> Tensor:
        """`orthogonalize` as the group's options say."""
        group, (rows, cols) = bucket.group, stack.shape[1:]
        dtype = _products(bucket, rows, cols)
        return orthogonalize_stack(stack, group["orthogonalize"], group["orthogonalize_steps"], dtype)


def _products(bucket: Bucket, rows: int, cols: int) -> torch.dtype:
    """The dtype in which matrices of this shape are orthogonalized by an iteration."""
    wanted: torch.dtype | None = bucket.group["orthogonalize_dtype"]
    return wanted or working_dtype_for(bucket.dtype, bucket.device, min(rows, cols))


def _kept(bucket: Bucket, rows: int, cols: int) -> torch.dtype:
    """The dtype in which matrices of this shape are given to the orthogonalization."""
    iteration = bucket.group["orthogonalize"] in ITERATIONS
    return _products(bucket, rows, cols) if iteration else bucket.dtype


def _cut(
    bucket: Bucket, pieces: Sequence[Matrices], names: Sequence[str], parts: Sequence[Tensor]
) -> Iterator[Chunk]:
    """The buffers of matrices in chunks, with a flat tensor for each of them, shaped as its buffers are."""
    rows = [piece.row() for piece in pieces]
    if bucket.group["transposed"]:
        parts = [part.view_as(row[names[0]]) for part, row in zip(parts, rows, strict=True)]
    return bucket.cut(rows, names, parts)


def _by_shape(bucket: Bucket) -> dict[tuple[int, int], list[Matrices]]:
    """The matrices of parameters by shape, in pieces none of which is larger than a batch."""
    shapes: dict[tuple[int, int], list[Matrices]] = {}
    bound = batch_entries(bucket.device)
    for slot in bucket.slots:
        for shape, place in layout_of(bucket.group, slot.param.shape).places(bound):
            shapes.setdefault(shape, []).append(Matrices(slot, place))
    return shapes
