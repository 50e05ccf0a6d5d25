"""What directions keep of replicated matrices where one rank alone keeps it (`shard_state=True`).

The other ranks have a tensor without entries in its place. Who keeps it is the owner of the matrices.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .buckets import Group, State
from .directions import DIRECTIONS
from .members import Members, Parcel
from .ranks import Division
from .state import emptied, follow_parameter, fresh, is_emptied, kept_tensors, started


class _Kept(NamedTuple):
    """A tensor that a direction keeps of a parameter: whose, what it is called, and what it is like whole."""

    parameter: Tensor
    state: State
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def value(self) -> Tensor:
        value: Tensor = self.state[self.name]
        return value

    def made(self) -> Tensor:
        """A whole one of zeros, which lies in memory as the parameter does."""
        return fresh(self.parameter, self.shape, self.dtype)


def _of_directions(groups: Sequence[Group], states: Mapping[Tensor, State]) -> Iterator[_Kept]:
    """What directions keep of every parameter; one whose state is gone is left out, and stops the step."""
    for group in groups:
        direction = DIRECTIONS[group["direction"]]
        for parameter in group["params"]:
            if not states.get(parameter):
                continue
            follow_parameter(parameter, states[parameter], group)
            names = direction.state_shapes(group, tuple(parameter.shape))
            for name, (shape, dtype) in kept_tensors(parameter, group).items():
                if name in names:
                    yield _Kept(parameter, states[parameter], name, shape, dtype)


def leave_to_keepers(
    groups: Sequence[Group], states: Mapping[Tensor, State], division: Division, before: Division | None
) -> None:
    """Hand what directions keep to its keepers; the other ranks let go of it.

    Args:
        groups: The optimizer's parameter groups; the direction of each decides what is kept.
        states: The state of their parameters.
        division: Who keeps what from now on.
        before: Who kept what so far; None if every rank kept all of it. If there is one, every rank has to
            call this.
    """
    moves: dict[tuple[Members, torch.dtype, torch.device], tuple[list[Parcel], list[Parcel]]] = {}
    for kept in _of_directions(groups, states):
        shared, last = (None if d is None else d.shared.get(kept.parameter) for d in (division, before))
        if shared is None or shared.keeper is None:
            continue
        old, value = shared.keeper, kept.value
        if last is not None and last.keeper is not None:
            old = shared.members.ranks.index(last.members.ranks[last.keeper])
        if shared.keeps:
            if is_emptied(value, kept.shape):
                kept.state[kept.name] = kept.made()
        else:
            kept.state[kept.name] = emptied(value)
        if old != shared.keeper and started(kept.state):
            kind = shared.members, kept.dtype, kept.parameter.device
            sends, receives = moves.setdefault(kind, ([], []))
            if old == shared.members.rank:
                sends.append((shared.keeper, value))
            if shared.keeps:
                receives.append((old, kept.value))
    for (members, dtype, device), (sends, receives) in moves.items():
        like = torch.empty(0, dtype=dtype, device=device)
        members.exchange(sends, receives, like, "momenta whose owner changed")()


def gathered(
    groups: Sequence[Group], states: Mapping[Tensor, State], division: Division | None
) -> dict[Tensor, dict[str, Tensor]]:
    """Whole tensors, on the CPU, of everything that one rank keeps for all; every one of them calls this."""
    found: dict[Tensor, dict[str, Tensor]] = {}
    for kept in _of_directions(groups, states):
        shared = None if division is None else division.shared.get(kept.parameter)
        if shared is None or shared.keeper is None:
            continue
        whole = kept.made()
        if shared.keeps:
            whole.copy_(kept.value)
        sent = whole.contiguous()  # the entries travel as they lie in memory, channels-last ones too
        shared.members.broadcast(sent, shared.keeper, f"gathered {kept.name}")
        found.setdefault(kept.parameter, {})[kept.name] = whole.copy_(sent).cpu()
    return found
