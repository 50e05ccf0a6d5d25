"""Matrices on their way to the ranks that orthogonalize them, and back.

A matrix has one owner. The momentum updates of its parts travel to the owner, unless it holds the matrix
already, and the polar factor travels back to every rank that holds a part: two all-to-alls for any number of
matrices, in which every entry is sent as it is, without padding. What every rank needs whole is all-gathered.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from .members import Finish, Members, Parcel
from .sharding import Box, Held


def _overlap(a: Box, b: Box) -> Box | None:
    """What two boxes have in common; None if that is nothing."""
    common = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    return common if all(start < stop for start, stop in common) else None


def _within(part: Box, whole: Box) -> tuple[slice, ...]:
    """The index of a box in a tensor that holds another one around it."""
    return tuple(slice(p[0] - w[0], p[1] - w[0]) for p, w in zip(part, whole, strict=True))


class Route:
    """The ways of one box of a tensor: from the ranks that hold its parts to its owner, and back.

    Args:
        box: The entries that travel: a range of indices along every dimension of the tensor.
        held: What every rank holds of the tensor.
        owner: The owner of the box.
        rank: The rank that runs this, numbered within the process group as `owner` is.
        covering: The ranks that hold all of the box.
    """

    def __init__(
        self, box: Box, held: Sequence[Held], owner: int, rank: int, covering: Sequence[int]
    ) -> None:
        self.shape = tuple(stop - start for start, stop in box)
        self.travels_there = owner not in covering
        self.travels_back = tuple(covering) != (owner,)
        self.replicated = len(covering) == len(held)
        part = _overlap(held[rank].box, box)
        self.here = None if part is None else _within(part, held[rank].box)
        replica = held[owner].replica
        self.is_source = self.travels_there and part is not None and held[rank].replica == replica
        self.sources: list[tuple[int, tuple[slice, ...]]] = []
        self.targets: list[tuple[int, tuple[slice, ...]]] = []
        if rank != owner:
            return
        for other, (theirs, _, number) in enumerate(held):
            common = _overlap(theirs, box)
            if common is None:
                continue
            place = _within(common, box)
            self.targets.append((other, place))
            if number == replica if self.travels_there else other == owner:
                self.sources.append((other, place))


class Unit(NamedTuple):
    """A matrix and its owner.

    Args:
        rows: Number of rows of the matrix.
        cols: Number of columns of the matrix.
        owner: The rank that orthogonalizes it.
        routes: The ways that its entries take, and those of the direction's numbers for each of its rows.
    """

    rows: int
    cols: int
    owner: int
    routes: tuple[Route, ...]


class Stack(NamedTuple):
    """Matrices of one shape that this rank owns.

    Args:
        rows: Number of rows of each matrix.
        cols: Number of columns of each matrix.
        tensors: Their entries, shape (n, *box), and the direction's numbers for each of their rows.
    """

    rows: int
    cols: int
    tensors: list[Tensor]


class Exchange:
    """Matrices of parameters of one kind on their way to their owners and back.

    Args:
        members: The ranks that share them.
        items: Every matrix, and this rank's parts of the tensors that its routes are of.
        like: Has the dtype that everything travels in, and the device.
        what: What they are, for errors.
    """

    def __init__(
        self, members: Members, items: list[tuple[Unit, list[Tensor]]], like: Tensor, what: str
    ) -> None:
        self.members, self._items, self._like, self._what = members, items, like, what
        alike: dict[tuple[int, ...], list[Unit]] = {}
        for unit, _ in items:
            if unit.owner == members.rank:
                alike.setdefault(unit.routes[0].shape, []).append(unit)
        self.own: list[Stack] = []
        self._whole: dict[int, list[Tensor]] = {}
        for units in alike.values():
            first = units[0]
            tensors = [like.new_empty((len(units), *route.shape)) for route in first.routes]
            self.own.append(Stack(first.rows, first.cols, tensors))
            for i, unit in enumerate(units):
                self._whole[id(unit)] = [tensor[i] for tensor in tensors]

    def to_owners(self) -> Finish:
        """Begin to fill `own` with the parts of all ranks."""
        sends: list[Parcel] = []
        receives: list[Parcel] = []
        for route, unit, part, whole in self._ways():
            if whole is None:
                if route.is_source:
                    sends.append((unit.owner, part[route.here]))
                continue
            for rank, place in route.sources:
                if rank == unit.owner:
                    whole[place].copy_(part[route.here])
                else:
                    receives.append((rank, whole[place]))
        if any(route.travels_there for unit, _ in self._items for route in unit.routes):
            return self.members.exchange(sends, receives, self._like, self._what)
        return _nothing

    def from_owners(self) -> Finish:
        """Begin to write `own` into the parts of all ranks."""
        travelling = [r for unit, _ in self._items for r in unit.routes if r.travels_back]
        if travelling and all(route.replicated for route in travelling):
            return self._share()
        sends: list[Parcel] = []
        receives: list[Parcel] = []
        for route, unit, part, whole in self._ways():
            if whole is None:
                if route.here is not None:
                    receives.append((unit.owner, part[route.here]))
                continue
            for rank, place in route.targets:
                if rank == unit.owner:
                    part[route.here].copy_(whole[place])
                else:
                    sends.append((rank, whole[place]))
        if travelling:
            return self.members.exchange(sends, receives, self._like, self._what)
        return _nothing

    def _share(self) -> Finish:
        """`from_owners` where every rank has all of every tensor, or the owner alone has."""
        for route, _, part, whole in self._ways():
            if whole is not None and not route.travels_back:
                part[route.here].copy_(whole)
        ways = sorted((way for way in self._ways() if way[0].travels_back), key=lambda way: way[1].owner)
        counts = [0] * self.members.size
        for route, unit, _, _ in ways:
            counts[unit.owner] += math.prod(route.shape)
        own = [whole for _, _, _, whole in ways if whole is not None]
        targets = [part[route.here] for route, _, part, _ in ways]
        return self.members.share(own, counts, targets, self._like, self._what)

    def _ways(self) -> Iterator[tuple[Route, Unit, Tensor, Tensor | None]]:
        """Every route with its matrix, this rank's part, and the whole where this rank is the owner."""
        for unit, parts in self._items:
            wholes = self._whole.get(id(unit), [None] * len(parts))
            for route, part, whole in zip(unit.routes, parts, wholes, strict=True):
                yield route, unit, part, whole


def _nothing() -> None:
    """Finish what did not have to be begun."""
