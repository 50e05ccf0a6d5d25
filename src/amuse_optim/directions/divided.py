"""The updates of matrices that ranks divide among them, each of which computes those that it owns."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from amuse_optim.buckets import Bucket, Slot
from amuse_optim.exchange import Exchange
from amuse_optim.members import Finish
from amuse_optim.orthogonalize import batches
from amuse_optim.ranks import Division, Shared
from amuse_optim.sharding import local

from .base import Update

if TYPE_CHECKING:
    from .muon import Muon

Item = TypeVar("Item")

# Entries that a rank has of the matrices that travel together: what bounds the memory for them.
ENTRIES_TOGETHER = 2**28


class Batch(NamedTuple):
    """Parameters of one shape whose matrices travel together.

    Args:
        slots: The parameters with their buffers; `shared` and `parts` have one element for each.
        shared: How the ranks share each.
        parts: What this rank has of each: first the momentum updates, in the end updates d / scale.
        exchange: Their matrices on their way.
    """

    slots: Sequence[Slot]
    shared: Sequence[Shared]
    parts: Sequence[Tensor]
    exchange: Exchange


def divided_updates(direction: "Muon", bucket: Bucket, division: Division) -> Iterator[Update]:
    """Yield the updates of a bucket; every rank that shares its parameters calls this.

    While a rank orthogonalizes what it owns of a batch, the next batch is on its way to the owners, and the
    batch before on its way back. Not so where the orthogonalization may raise: all ranks stop then, and
    nothing may be on its way.
    """
    may_raise = direction.may_raise(bucket.group)
    begun = (_begun(direction, bucket, slots, shared) for slots, shared in _together(bucket, division))
    returning: deque[tuple[Batch, Finish]] = deque()
    for batch, arrived in begun if may_raise else _one_ahead(begun):
        arrived()
        _work(direction, bucket, batch.exchange)
        returning.append((batch, batch.exchange.from_owners()))
        if may_raise or len(returning) > 1:
            yield from _updates(direction, bucket, *returning.popleft())
    if returning:
        yield from _updates(direction, bucket, *returning.popleft())


def _one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each after the one that follows has been taken from `items`."""
    ahead: deque[Item] = deque()
    for item in items:
        ahead.append(item)
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead


def _together(bucket: Bucket, division: Division) -> Iterator[tuple[list[Slot], list[Shared]]]:
    """Parameters of one shape in batches, the same on all ranks, in each of which all owners have work."""
    alike: dict[object, list[Slot]] = {}
    for slot in bucket.slots:
        shared = division.shared[slot.param]
        if shared.units:  # else it has no entries
            alike.setdefault((shared.members, shared.spread, slot.param.shape), []).append(slot)
    for slots in alike.values():
        owned: Counter[int] = Counter()
        turns: list[tuple[int, Slot]] = []
        for slot in slots:
            owner = division.shared[slot.param].units[0].owner
            turns.append((owned[owner], slot))
            owned[owner] += 1
        ordered = [slot for _, slot in sorted(turns, key=lambda turn: turn[0])]
        spread, shape = division.shared[slots[0].param].spread, tuple(slots[0].param.shape)
        most = max(1, ENTRIES_TOGETHER // spread.most_entries(shape))
        for start in range(0, len(ordered), most):
            some = ordered[start : start + most]
            yield some, [division.shared[slot.param] for slot in some]


def _begun(
    direction: "Muon", bucket: Bucket, slots: Sequence[Slot], shared: Sequence[Shared]
) -> tuple[Batch, Finish]:
    """Move the momenta, and begin to send the updates to the owners of the matrices."""
    shapes = {(unit.rows, unit.cols) for unit in shared[0].units}
    dtype = direction.travelling_dtype(bucket, shapes)
    parts = [torch.empty_like(slot.row["y"], dtype=dtype) for slot in slots]
    kept = [i for i, each in enumerate(shared) if each.keeps]
    if kept:
        direction.move_momentum(bucket, [slots[i] for i in kept], [parts[i] for i in kept])
    items = []
    for slot, part, each in zip(slots, parts, shared, strict=True):
        row_state = [local(slot.state[name]) for name in direction.row_state]
        items += [(unit, [slot.shaped(part), *row_state]) for unit in each.units]
    like = torch.empty(0, dtype=dtype, device=bucket.device)
    what = f"matrices of parameters of shape {tuple(slots[0].param.shape)}"
    exchange = Exchange(shared[0].members, items, like, what)
    return Batch(slots, shared, parts, exchange), exchange.to_owners()


def _work(direction: "Muon", bucket: Bucket, exchange: Exchange) -> None:
    """Turn the momentum updates of the matrices that this rank owns into updates d / scale.

    Raises:
        RuntimeError: If that failed on another rank.
    """
    failure: Exception | None = None
    try:
        for rows, cols, (stack, *row_state) in exchange.own:
            size = rows * cols
            for numbers in batches(range(len(stack)), [size] * len(stack), bucket.device):
                chosen = slice(numbers[0], numbers[-1] + 1)
                some = stack[chosen]
                matrices = some.view(-1, cols, rows).mT if bucket.group["transposed"] else some
                factors = direction.polar_factors(bucket, matrices.reshape(-1, rows, cols))
                if bucket.measurement is not None:
                    bucket.measurement.add_polar_factors(factors, members=exchange.members)
                kept = [state[chosen].view(-1, rows) for state in row_state]
                factors = direction.finish(factors, kept, bucket)
                stored = factors.mT if bucket.group["transposed"] else factors
                some.copy_(stored.reshape(some.shape))
    except Exception as error:
        failure = error
    if bucket.measurement is not None:
        bucket.measurement.add_polar_factors(members=exchange.members)
    if direction.may_raise(bucket.group):
        failed = torch.tensor(int(failure is not None), device=bucket.device)
        if int(exchange.members.summed(failed)) and failure is None:
            failure = RuntimeError("the orthogonalization failed on another rank, whose error says why")
    if failure is not None:
        raise failure


def _updates(direction: "Muon", bucket: Bucket, batch: Batch, arrived: Finish) -> Iterator[Update]:
    """The updates of a batch, once they have arrived."""
    arrived()
    slots, shared, parts, _ = batch
    scales = {
        (unit.rows, unit.cols): direction.scale(bucket.group, unit.rows, unit.cols)
        for unit in shared[0].units
    }
    scale = next(iter(scales.values()))
    if len(set(scales.values())) > 1:  # one factor for each matrix of a parameter
        parts = [part.to(bucket.dtype) for part in parts]
        for slot, part, each in zip(slots, parts, shared, strict=True):
            for unit in each.units:
                if unit.routes[0].here is not None:
                    slot.shaped(part)[unit.routes[0].here].mul_(scales[unit.rows, unit.cols])
        scale = 1.0
    for chunk in bucket.cut([slot.row for slot in slots], bucket.sequences, parts):
        yield chunk, chunk.update, scale
