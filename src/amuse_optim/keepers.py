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
from .state import emptied, is_emptied, kept_tensors, started


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
        """A whole one of zeros."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.parameter.device)


def _of_directions(groups: Sequence[Group], states: Mapping[Tensor, State]) -> Iterator[_Kept]:
    for group in groups:
        direction = DIRECTIONS[group["direction"]]
        for parameter in group["params"]:
            names = direction.state_shapes(group, tuple(parameter.shape))
            for name, (shape, dtype) in kept_tensors(parameter, group).items():
                if name in names:
                    yield _Kept(parameter, states[parameter], name, shape, dtype)


def leave_to_keepers(
    groups: Sequence[Group], states: Mapping[Tensor, State], division: Division, before: Division | None
) -> None:
    """Hand what directions keep to its keepers; the other ranks let go of it.

    Args:
        groups: The optimizer's groups.
        states: The state of their parameters.
        division: Who keeps what from now on.
        before: Who kept it so far, if anybody but all; every rank then calls this.
    """
    moves: dict[tuple[Members, torch.dtype], tuple[list[Parcel], list[Parcel]]] = {}
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
            sends, receives = moves.setdefault((shared.members, kept.dtype), ([], []))
            if old == shared.members.rank:
                sends.append((shared.keeper, value))
            if shared.keeps:
                receives.append((old, kept.value))
    for (members, dtype), (sends, receives) in moves.items():
        like = torch.empty(0, dtype=dtype, device=groups[0]["params"][0].device)
        members.exchange(sends, receives, like, "momenta whose owner changed")()


def gathered(
    groups: Sequence[Group], states: Mapping[Tensor, State], division: Division | None
) -> dict[Tensor, dict[str, Tensor]]:
    """Whole tensors, on the CPU, of everything that one rank keeps for all; every one of them calls this."""
    found: dict[Tensor, dict[str, Tensor]] = {}
    for kept in _of_directions(groups, states):
        shared = None if division is None else division.shared.get(kept.parameter)
        if shared is not None and shared.keeper is not None:
            whole = kept.value if shared.keeps else kept.made()
            shared.members.broadcast(whole, shared.keeper, f"gathered {kept.name}")
        elif is_emptied(kept.value, kept.shape):  # nobody has any yet
            whole = kept.made()
        else:
            continue
        found.setdefault(kept.parameter, {})[kept.name] = whole.cpu()
    return found
