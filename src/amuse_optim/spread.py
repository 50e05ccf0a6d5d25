"""How parameters lie on ranks, and the matrices that they are made of, before these have owners."""

import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from .matrices import Single, layout_of
from .owners import Work, multiply_adds
from .sharding import Box, Held, held_parts, leading_placements


class Spread(NamedTuple):
    """How parameters of one shape lie on the ranks of a process group.

    Args:
        mesh: The shape of the ranks' mesh.
        placements: One for each of its dimensions; None for tensors that every rank has whole.
        order: The rank in the process group of each place in the mesh.
    """

    mesh: tuple[int, ...]
    placements: tuple[Any, ...] | None
    order: tuple[int, ...]

    @cache  # noqa: B019 - there are few
    def held(self, shape: tuple[int, ...]) -> tuple[Held, ...]:
        """What every rank holds of a tensor with this shape: the parameter's, or its first dimensions."""
        if self.placements is None:
            whole = tuple((0, size) for size in shape)
            return tuple(Held(whole, 0, rank) for rank in self.order)
        placements = leading_placements(self.placements, len(shape))
        found = dict(zip(self.order, held_parts(shape, self.mesh, placements), strict=True))
        return tuple(found[rank] for rank in range(len(found)))

    @cache  # noqa: B019
    def most_entries(self, shape: tuple[int, ...]) -> int:
        """The entries of a tensor of this shape that the rank with the most has."""
        return max(math.prod(stop - start for start, stop in held.box) for held in self.held(shape))

    @cache  # noqa: B019
    def covering(self, box: Box, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The ranks that hold all of a box of a tensor of this shape."""
        return tuple(
            rank
            for rank, (held, _, _) in enumerate(self.held(shape))
            if all(h[0] <= b[0] and b[1] <= h[1] for h, b in zip(held, box, strict=True))
        )


def held_by(owner: int, ranks: int, shape: tuple[int, ...]) -> tuple[Held, ...]:
    """What every rank holds of a tensor that one of them has whole, and the others nothing of."""
    return tuple(
        Held(tuple((0, size if rank == owner else 0) for size in shape), 0, rank) for rank in range(ranks)
    )


class Found(NamedTuple):
    """A matrix before it has an owner.

    Args:
        single: The matrix: its shape, and where it lies in the parameter.
        boxes: Its entries, and its rows for each tensor that has one number for a row, each with the shape of
            the tensor that it is a box of.
        work: What the planner is told.
    """

    single: Single
    boxes: list[tuple[Box, tuple[int, ...]]]
    work: Work


def matrices_of(
    name: str, group: Mapping[str, Any], shape: tuple[int, ...], spread: Spread, row_states: int = 0
) -> Iterator[Found]:
    """The matrices of a parameter, with what it costs to orthogonalize each, and who may do it.

    A matrix that is whole on some ranks stays there: on one rank, as stacked experts are that are sharded
    along the experts, or on any of its replicas.

    Args:
        name: The parameter's name, with which the names of its matrices begin.
        group: Options of its group: which matrices it consists of, and how these are orthogonalized.
        shape: The parameter's shape; of a sharded one, the shape of the whole.
        spread: How it lies on the ranks.
        row_states: The number of tensors that its direction keeps for the rows.
    """
    layout = layout_of(group, shape)
    for number, single in enumerate(layout.singles()):
        boxes = [(single.box, layout.shape), *[(single.row_box, layout.row_shape)] * row_states]
        covering = spread.covering(single.box, layout.shape)
        ranks = () if len(covering) == len(spread.order) else covering
        cost = multiply_adds(single.rows, single.cols, group["orthogonalize"], group["orthogonalize_steps"])
        yield Found(single, boxes, Work(f"{name}, matrix {number}", cost, ranks))
