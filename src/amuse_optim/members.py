"""Ranks that share parameters, and what they send each other: the only collectives of a step.

A collective that carries matrices is begun, and finished later, so that a rank computes meanwhile.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Waits for what was begun, and writes what has arrived to where it belongs.
Finish = Callable[[], None]
# A tensor and the rank that it is sent to, or comes from.
Parcel = tuple[int, Tensor]


def evened(counts: Sequence[int], rank: int) -> tuple[list[int], list[int], int]:
    """How to give all ranks equally many entries, in their order; the last ranks may be left with fewer.

    Args:
        counts: How many entries each rank has.
        rank: The rank whose numbers are returned, an index of `counts`.

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
        group: The `torch.distributed.ProcessGroup` of these ranks, to which this process belongs.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.ranks = dist.get_process_group_ranks(group)

    def summed(self, value: Tensor) -> Tensor:
        """The sum over all members; every one of them calls this."""
        value = value.clone()
        if self.size > 1:
            with self._explained("asked whether all ranks can take the step"):
                dist.all_reduce(value, group=self.group)
        return value

    def broadcast(self, value: Tensor, source: int, doing: str) -> None:
        """Write the tensor of one member into those of all; every one of them calls this.

        Args:
            value: On the source what the others are to have; of one shape and dtype on all.
            source: Rank, within the group, of the member whose tensor is sent.
            doing: What it is for, for errors.
        """
        if self.size > 1:
            with self._explained(doing):
                dist.broadcast(value, self.ranks[source], group=self.group)

    def exchange(self, sends: list[Parcel], receives: list[Parcel], like: Tensor, what: str) -> Finish:
        """Begin to send tensors and to fill others with what was sent, in one all-to-all of every member.

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
        sizes = self._sizes(receives), self._sizes(sends)
        doing = f"exchanged {what}"
        with self._explained(doing):
            work = dist.all_to_all_single(received, sent, *sizes, group=self.group, async_op=True)

        def finish() -> None:
            with self._explained(doing):
                work.wait()
            pieces = received.split([tensor.numel() for _, tensor in receives])
            for (_, target), piece in zip(receives, pieces, strict=True):
                target.copy_(piece.view(target.shape))

        return finish

    def share(
        self, own: list[Tensor], counts: Sequence[int], targets: list[Tensor], like: Tensor, what: str
    ) -> Finish:
        """Begin to fill tensors with those of every member, member by member.

        An all-gather of equal parts, after an all-to-all that makes them equal: a member that has more than
        the others, or all there is, does not send it to each of them.

        Args:
            own: This member's tensors, in the order that their targets have.
            counts: How many entries each member has.
            targets: Views that are written to, the same on every member.
            like: Has the dtype that everything travels in, and the device.
            what: What is sent, for errors.
        """
        sends, receives, even = evened(counts, self.rank)
        sent = torch.cat([tensor.reshape(-1).to(like.dtype) for tensor in own]) if own else like.new_empty(0)
        part = like.new_zeros(even)
        arrived = part[: sum(receives)]
        whole = like.new_empty(even * self.size)
        doing = f"shared {what}"
        with self._explained(doing):
            if list(counts) == [even] * self.size:
                arrived.copy_(sent)
            else:
                dist.all_to_all_single(arrived, sent, receives, sends, group=self.group)
            work = dist.all_gather(list(whole.split(even)), part, group=self.group, async_op=True)

        def finish() -> None:
            with self._explained(doing):
                work.wait()
            pieces = whole[: sum(counts)].split([target.numel() for target in targets])
            for target, piece in zip(targets, pieces, strict=True):
                target.copy_(piece.view(target.shape))

        return finish

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
