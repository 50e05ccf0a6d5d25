"""The matrices of an optimizer divided over ranks: which ranks share a parameter, and who owns its matrices.

Sharded parameters say themselves which ranks share them. Replicated ones (DDP) are plain tensors, so the
process group has to be given; each of its ranks holds all of them.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .exchange import Route, Unit
from .matrices import OPTIONS
from .members import Members
from .orthogonalize import working_dtype_for
from .owners import Work, owners_of
from .sharding import is_sharded, local
from .spread import Found, Spread, held_by, matrices_of

Group = Mapping[str, Any]
# By name, the directions whose matrices are divided, with the names of what they keep for each row.
RowState = Mapping[str, Sequence[str]]

# Options that decide who owns what, and which collectives there are: the same on all ranks.
_DECIDING = (
    "direction",
    "foreach",
    "state_precision",
    "orthogonalize",
    "orthogonalize_steps",
    "orthogonalize_dtype",
    "capturable",
    *OPTIONS,
)


class Shared(NamedTuple):
    """A parameter that several ranks share.

    Args:
        members: The ranks that share it.
        spread: How it lies on them.
        units: Its matrices with their owners, if they are divided over the ranks.
        keeper: The one rank that keeps what the direction keeps, and owns all its matrices; None if every
            rank does, of its part.
    """

    members: Members
    spread: Spread
    units: tuple[Unit, ...] = ()
    keeper: int | None = None

    @property
    def keeps(self) -> bool:
        """Whether this rank keeps what the direction keeps."""
        return self.keeper in (None, self.members.rank)


class Division:
    """Who owns the matrices of the groups of an optimizer, by a plan that every rank makes by itself.

    Args:
        groups: The groups, the same on all ranks.
        process_group: The ranks that replicate plain parameters; None if they are not known.
        row_state: The directions whose matrices are divided.
        shard_state: Whether the owner alone keeps the momentum of replicated matrices.
        before: The division of earlier groups, whose process groups are used again.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        process_group: Any,
        row_state: RowState,
        *,
        shard_state: bool = False,
        before: "Division | None" = None,
    ) -> None:
        self.groups = len(groups)
        self.process_group = process_group
        self.shared: dict[Tensor, Shared] = {}
        self._key = _key(groups)
        self._shard_state = shard_state
        self._members: dict[object, Members] = {} if before is None else before._members
        self._asked: dict[Members, list[Tensor]] = {}
        self._lines: dict[Members, list[str]] = {}
        self._called: dict[Tensor, str] = {}
        named: dict[Members, list[tuple[str, Group, Tensor, Spread]]] = {}
        for number, group in enumerate(groups):
            for name, parameter in zip(_names(group), group["params"], strict=True):
                if is_sharded(parameter) or process_group is not None:
                    members, spread = self._placed(parameter, process_group)
                    named.setdefault(members, []).append(
                        (f"group {number}, {name}", group, parameter, spread)
                    )
        for members, parameters in named.items():
            # What a CUDA graph captures cannot be asked for, and is the same at every step.
            self._asked[members] = [p for _, group, p, _ in parameters if not group["capturable"]]
            self._lines[members] = self._divide(members, parameters, row_state)
            present = {id(group) for _, group, _, _ in parameters}
            self._lines[members] += [
                f"group {number}, {option}"
                for number, group in enumerate(groups)
                if id(group) in present
                for option in _in_words(group)
            ]

    def follows(self, groups: Sequence[Group]) -> bool:
        """Whether it was made for these groups, as they are."""
        return self._key == _key(groups)

    def check(self) -> None:
        """Compare the plan with those of the other ranks, once; all of them call this.

        Raises:
            ValueError: If the ranks do not have the same parameters and options.
        """
        for members, lines in self._lines.items():
            parameters = [p for p, shared in self.shared.items() if shared.members is members]
            plain = [p for p in parameters if not is_sharded(p)]
            values = [
                f"{self._called[p]}, {tuple(p.shape)}, values with the checksum {checksum}"
                for p, checksum in zip(plain, _checksums(plain), strict=True)
            ]
            members.check_same([*lines, *values], local(parameters[0]).device)
        self._lines = {}

    def members(self) -> list[Members]:
        """The sets of ranks that share parameters, in the same order on every rank."""
        return list(self._asked)

    def agree(
        self, present: Container[Tensor], numbers: Sequence[int]
    ) -> tuple[dict[Tensor, int], Sequence[int]]:
        """Count, over the ranks, which parameters have a gradient; each rank calls this before a step.

        Args:
            present: The parameters that have a gradient here.
            numbers: Numbers to add up over the ranks, whatever they mean; equally many on all ranks.

        Returns:
            For each parameter that several ranks share, the number of those that have its gradient; and the
            sums of the numbers, which are 0 where they are 0 on all ranks.
        """
        having: dict[Tensor, int] = {}
        for members, asked in self._asked.items():
            if asked:
                counts = torch.tensor(
                    [*(p in present for p in asked), *numbers], device=local(asked[0]).device
                )
                total = members.summed(counts).tolist()
                having.update(zip(asked, total, strict=False))
                numbers = total[len(asked) :]
        return having, numbers

    def _placed(self, parameter: Any, process_group: Any) -> tuple[Members, Spread]:
        """The ranks that share a parameter, and how it lies on them."""
        if not is_sharded(parameter):
            if process_group not in self._members:
                self._members[process_group] = Members(process_group)
            members = self._members[process_group]
            return members, Spread((members.size,), None, tuple(range(members.size)))
        mesh = parameter.device_mesh
        ranks = tuple(mesh.mesh.flatten().tolist())
        if ranks not in self._members:
            if mesh.ndim == 1:
                group = mesh.get_group()
            elif len(ranks) == dist.get_world_size():
                group = dist.group.WORLD
            else:
                group = dist.new_group(list(ranks), use_local_synchronization=True)
            self._members[ranks] = Members(group)
        members = self._members[ranks]
        order = tuple(dist.get_group_rank(members.group, rank) for rank in ranks)
        return members, Spread(tuple(mesh.shape), tuple(parameter.placements), order)

    def _divide(
        self,
        members: Members,
        parameters: Sequence[tuple[str, Group, Tensor, Spread]],
        row_state: RowState,
    ) -> list[str]:
        """Find the owners of the matrices of parameters that the same ranks share; the plan in words."""
        lines = []
        wanted: dict[Tensor, torch.dtype | None] = {}
        found: list[tuple[Tensor, Found]] = []
        work: dict[str, Work] = {}
        for name, group, parameter, spread in parameters:
            lines.append(f"{name}, {tuple(parameter.shape)}, {parameter.dtype}, {spread.placements}")
            self._called[parameter] = name
            self.shared[parameter] = Shared(members, spread)
            if group["direction"] not in row_state:
                continue
            wanted[parameter] = group["orthogonalize_dtype"]
            kept = len(row_state[group["direction"]])
            matrices = list(matrices_of(name, group, tuple(parameter.shape), spread, kept))
            if self._shard_state and spread.placements is None:  # all of them belong to one owner
                together = Work(name, sum(matrix.work.multiply_adds for matrix in matrices))
                matrices = [matrix._replace(work=together) for matrix in matrices]
            work |= {matrix.work.name: matrix.work for matrix in matrices}
            found += [(parameter, matrix) for matrix in matrices]
        owners = dict(zip(work, owners_of(list(work.values()), members.size), strict=True))
        units: dict[Tensor, list[Unit]] = {}
        for parameter, matrix in found:
            owner, short = owners[matrix.work.name], min(matrix.single.rows, matrix.single.cols)
            dtype = wanted[parameter] or working_dtype_for(parameter.dtype, parameter.device, short)
            cost = f"{matrix.work.multiply_adds} multiply-adds in {dtype}"
            lines.append(f"{matrix.work.name} of {cost} on rank {owner}")
            spread = self.shared[parameter].spread
            rank, alone = members.rank, self._shard_state and spread.placements is None
            (box, shape), *rows = matrix.boxes
            routes = [Route(box, spread.held(shape), owner, rank, spread.covering(box, shape))]
            for box, shape in rows:
                held = spread.held(shape) if not alone else held_by(owner, members.size, shape)
                covering = spread.covering(box, shape) if not alone else (owner,)
                routes.append(Route(box, held, owner, rank, covering))
            units.setdefault(parameter, []).append(
                Unit(matrix.single.rows, matrix.single.cols, owner, tuple(routes))
            )
            if alone:
                self.shared[parameter] = self.shared[parameter]._replace(keeper=owner)
        for parameter, some in units.items():
            self.shared[parameter] = self.shared[parameter]._replace(units=tuple(some))
        return lines


def _names(group: Group) -> list[str]:
    """What the parameters of a group are called: by their names, if these are all there and all different."""
    names = list(group.get("param_names") or ())
    if len(set(names)) == len(group["params"]):
        return names
    return [f"parameter {index}" for index in range(len(group["params"]))]


def _in_words(group: Group) -> Iterator[str]:
    """The options that decide; a function, which has another address on every rank, by its name."""
    for name in _DECIDING:
        value = group.get(name)
        named = getattr(value, "__qualname__", type(value).__qualname__) if callable(value) else repr(value)
        yield f"{name}={named}"


def _checksums(parameters: Sequence[Tensor]) -> list[int]:
    """Of each a number that is the same where all bits are: replicas that differ would not train as one."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        p.detach().contiguous().view(integers[p.element_size()]).sum(dtype=torch.int64) for p in parameters
    ]
    if not sums:
        return []
    found: list[int] = torch.stack([each.to(sums[0].device) for each in sums]).tolist()
    return found


def _key(groups: Sequence[Group]) -> object:
    """Everything that decides who owns what: equal where nothing changed."""
    return tuple(
        (*map(id, group["params"]), *(repr(group.get(name)) for name in _DECIDING)) for group in groups
    )


def check_process_group(group: object) -> None:
    """Check the ranks that are said to replicate the parameters.

    Raises:
        TypeError: If it is no process group.
        ValueError: If this process does not belong to it.
    """
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "process_group must be a torch.distributed.ProcessGroup, such as torch.distributed.group.WORLD "
            f"after init_process_group, got {group!r}"
        )
    if dist.get_rank(group) < 0:
        raise ValueError("process_group must hold this process, got one of other ranks")
