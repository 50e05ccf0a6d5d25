"""Matrices on their way to the ranks that orthogonalize them, and back.

A matrix has one owner. The momentum updates of its parts travel to the owner, unless it holds the matrix
already, and the polar factor travels back to every rank that holds a part: two all-to-alls for any number of
matrices, in which every entry is sent as it is, without padding. What every rank needs whole is all-gathered.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .sharding import Box, Held

# A tensor and the rank that it is sent to, or comes from.
Parcel = tuple[int, Tensor]


def _overlap(a: Box, b: Box) -> Box | None:
    """What two boxes have in common; None if that is nothing."""
    common = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    return common if all(start < stop for start, stop in common) else None


def _within(part: Box, whole: Box) -> tuple[slice, ...]:
    """The index of a box in a tensor that holds another one around it."""
    return tuple(slice(p[0] - w[0], p[1] - w[0]) for p, w in zip(part, whole, strict=True))


def evened(counts: Sequence[int], rank: int) -> tuple[list[int], list[int], int]:
    """How to give all ranks equally many entries, in their order; the last ranks may be left with fewer.

    Args:
        counts: How many entries each rank has.
        rank: One of them.

    Returns:
        How many entries it sends to each rank; how many it gets from each; and how many make equal parts.
    """
    even = -(-sum(counts) // len(counts))
    ends = list(itertools.accumulate(counts))

    def common(source: int, target: int) -> int:
        start, stop = ends[source] - counts[source], ends[source]
        return max(0, min(stop, (target + 1) * even) - max(start, target * even))

    ranks = range(len(counts))
    return [common(rank, to) for to in ranks], [common(source, rank) for source in ranks], even


class Members:
    """Ranks that share parameters.

    Args:
        group: Their process group.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def summed(self, value: Tensor) -> Tensor:
        """The sum over all members; every one of them calls this."""
        value = value.clone()
        if self.size > 1:
            with self._explained("asked whether all ranks can take the step"):
                dist.all_reduce(value, group=self.group)
        return value

    def exchange(self, sends: list[Parcel], receives: list[Parcel], like: Tensor, what: str) -> None:
        """Send tensors and fill others with what was sent, in one all-to-all that every member calls.

        Args:
            sends: In an order that the receiver's list has too.
            receives: Views that are written to.
            like: Has the dtype that everything travels in, and the device.
            what: What is sent, for errors.
        """
        sends.sort(key=lambda parcel: parcel[0])
        receives.sort(key=lambda parcel: parcel[0])
        parts = [tensor.reshape(-1).to(like.dtype) for _, tensor in sends]
        sent = torch.cat(parts) if parts else like.new_empty(0)
        received = like.new_empty(sum(tensor.numel() for _, tensor in receives))
        with self._explained(f"exchanged {what}"):
            dist.all_to_all_single(
                received, sent, self._sizes(receives), self._sizes(sends), group=self.group
            )
        pieces = received.split([tensor.numel() for _, tensor in receives])
        for (_, target), piece in zip(receives, pieces, strict=True):
            target.copy_(piece.view(target.shape))

    def share(self, own: list[Tensor], counts: Sequence[int], like: Tensor, what: str) -> Tensor:
        """Every member's tensors, one behind the other, for all members.

        An all-gather of equal parts, after an all-to-all that makes them equal: a member that has more than
        the others, or all there is, does not send it to each of them.

        Args:
            own: This member's tensors.
            counts: How many entries each member has.
            like: Has the dtype that everything travels in, and the device.
            what: What is sent, for errors.
        """
        sends, receives, even = evened(counts, self.rank)
        sent = torch.cat([tensor.reshape(-1).to(like.dtype) for tensor in own]) if own else like.new_empty(0)
        part = like.new_zeros(even)
        arrived = part[: sum(receives)]
        whole = like.new_empty(even * self.size)
        with self._explained(f"shared {what}"):
            if list(counts) == [even] * self.size:
                arrived.copy_(sent)
            else:
                dist.all_to_all_single(arrived, sent, receives, sends, group=self.group)
            dist.all_gather(list(whole.split(even)), part, group=self.group)
        return whole[: sum(counts)]

    def _sizes(self, parcels: Iterable[Parcel]) -> list[int]:
        """The number of entries for every rank."""
        sizes = [0] * self.size
        for rank, tensor in parcels:
            sizes[rank] += tensor.numel()
        return sizes

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Context manager: errors of a collective say what it was for."""
        try:
            yield
        except RuntimeError as error:
            error.add_note(
                f"while rank {self.rank} of {self.size} {doing}: another rank has failed, or takes no step"
            )
            raise

    def check_same(self, lines: Sequence[str], device: torch.device) -> None:
        """Compare a list that must be the same on every member.

        Raises:
            ValueError: If it is not; the message has the first difference.
        """
        digest = int.from_bytes(hashlib.sha256("\n".join(lines).encode()).digest()[:7], "big")
        ends = torch.tensor([digest, -digest], dtype=torch.int64, device=device)
        if self.size > 1:
            dist.all_reduce(ends, dist.ReduceOp.MAX, group=self.group)
        if int(ends[0]) == -int(ends[1]):
            return
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, list(lines), group=self.group)
        for rank, other in enumerate(found[1:], 1):
            for i in range(max(len(found[0]), len(other))):
                here, there = (some[i] if i < len(some) else "nothing" for some in (found[0], other))
                if here != there:
                    raise ValueError(
                        "all ranks must have the same parameters and options, in the same order: the first "
                        f"difference is {here!r} on rank 0 and {there!r} on rank {rank}. Build the model and "
                        "the optimizer alike on every rank, and give replicas the same values, as DDP does"
                    )


class Route:
    """The ways of one box of a tensor: from the ranks that hold its parts to its owner, and back.

    Args:
        box: The box.
        held: What every rank holds of the tensor.
        owner: The owner of the box.
        rank: This rank.
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
        rows: Its rows.
        cols: Its columns.
        owner: The rank that orthogonalizes it.
        routes: Of its entries, and of the direction's numbers for each of its rows.
    """

    rows: int
    cols: int
    owner: int
    routes: tuple[Route, ...]


class Stack(NamedTuple):
    """Matrices of one shape that this rank owns.

    Args:
        rows: Of each.
        cols: Of each.
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

    def to_owners(self) -> None:
        """Fill `own` with the parts of all ranks."""
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
            self.members.exchange(sends, receives, self._like, self._what)

    def from_owners(self) -> None:
        """Write `own` into the parts of all ranks."""
        if self.members.size > 1 and all(r.replicated for unit, _ in self._items for r in unit.routes):
            self._share()
            return
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
        if any(route.travels_back for unit, _ in self._items for route in unit.routes):
            self.members.exchange(sends, receives, self._like, self._what)

    def _share(self) -> None:
        """`from_owners` where every rank has all of every tensor."""
        ways = sorted(self._ways(), key=lambda way: way[1].owner)
        counts = [0] * self.members.size
        for route, unit, _, _ in ways:
            counts[unit.owner] += math.prod(route.shape)
        own = [whole for _, _, _, whole in ways if whole is not None]
        shared = self.members.share(own, counts, self._like, self._what)
        pieces = shared.split([math.prod(route.shape) for route, _, _, _ in ways])
        for (route, _, part, _), piece in zip(ways, pieces, strict=True):
            part[route.here].copy_(piece.view(route.shape))

    def _ways(self) -> Iterator[tuple[Route, Unit, Tensor, Tensor | None]]:
        """Every route with its matrix, this rank's part, and the whole where this rank is the owner."""
        for unit, parts in self._items:
            wholes = self._whole.get(id(unit), [None] * len(parts))
            for route, part, whole in zip(unit.routes, parts, wholes, strict=True):
                yield route, unit, part, whole
