"""The matrices of an optimizer divided over ranks: which ranks share a parameter, and who owns its matrices.

Sharded parameters say themselves which ranks share them. Replicated ones (DDP) are plain tensors, so the
process group has to be given; each of its ranks holds all of them.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .exchange import Members, Route, Unit
from .matrices import OPTIONS, Single, layout_of
from .orthogonalize import working_dtype_for
from .owners import Work, multiply_adds, owners_of
from .sharding import Box, Held, held_parts, is_sharded, leading_placements, local

Group = Mapping[str, Any]
# By name, the directions whose matrices are divided, with the names of what they keep for each row.
RowState = Mapping[str, Sequence[str]]

_DECIDING = ("direction", "orthogonalize", "orthogonalize_steps", "orthogonalize_dtype", *OPTIONS)


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
    def covering(self, box: Box, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The ranks that hold all of a box of a tensor of this shape."""
        return tuple(
            rank
            for rank, (held, _, _) in enumerate(self.held(shape))
            if all(h[0] <= b[0] and b[1] <= h[1] for h, b in zip(held, box, strict=True))
        )


class Found(NamedTuple):
    """A matrix before it has an owner.

    Args:
        single: The matrix.
        boxes: Its entries, and its rows for each tensor that has one number for a row, each with the shape of
            the tensor that it is a box of.
        work: What the planner is told.
    """

    single: Single
    boxes: list[tuple[Box, tuple[int, ...]]]
    work: Work


def matrices_of(
    name: str, group: Group, shape: tuple[int, ...], spread: Spread, row_states: int = 0
) -> Iterator[Found]:
    """The matrices of a parameter, with what it costs to orthogonalize each, and who may do it.

    A matrix that is whole on some ranks stays there: on one rank, as stacked experts are that are sharded
    along the experts, or on any of its replicas.

    Args:
        name: The parameter's name.
        group: Options of its group.
        shape: Its shape.
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


class Shared(NamedTuple):
    """A parameter that several ranks share.

    Args:
        members: These ranks.
        spread: How it lies on them.
        units: Its matrices with their owners, if they are divided over the ranks.
    """

    members: Members
    spread: Spread
    units: tuple[Unit, ...]


class Division:
    """Who owns the matrices of the groups of an optimizer.

    Args:
        groups: The groups, the same on all ranks.
        process_group: The ranks that replicate plain parameters; None if they are not known.
        row_state: The directions whose matrices are divided.
        before: The division of earlier groups, whose process groups are used again.

    Raises:
        ValueError: If the ranks do not have the same parameters and options.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        process_group: Any,
        row_state: RowState,
        before: "Division | None" = None,
    ) -> None:
        self._key = _key(groups)
        self._process_group = process_group
        self._members: dict[object, Members] = {} if before is None else before._members
        self.shared: dict[Tensor, Shared] = {}
        named: dict[Members, list[tuple[str, Group, Tensor, Spread]]] = {}
        for number, group in enumerate(groups):
            names = group.get("param_names") or ()
            for index, parameter in enumerate(group["params"]):
                if is_sharded(parameter) or process_group is not None:
                    members, spread = self._placed(parameter, process_group)
                    name = names[index] if index < len(names) else f"parameter {index}"
                    named.setdefault(members, []).append(
                        (f"group {number}, {name}", group, parameter, spread)
                    )
        for members, parameters in named.items():
            self._divide(members, parameters, row_state)

    def follows(self, groups: Sequence[Group], process_group: Any) -> bool:
        """Whether it was made for these groups, as they are, and for these ranks."""
        return self._process_group is process_group and self._key == _key(groups)

    def members(self) -> list[Members]:
        """The sets of ranks that share parameters, in the same order on every rank."""
        return list(dict.fromkeys(shared.members for shared in self.shared.values()))

    def agree(
        self, parameters: Sequence[Tensor], present: Container[Tensor], numbers: Sequence[int]
    ) -> tuple[dict[Tensor, int], Sequence[int]]:
        """What all ranks have; each of them calls this before a step.

        Args:
            parameters: The same on all ranks.
            present: Those that have a gradient here.
            numbers: Of any meaning, equally many on all ranks.

        Returns:
            For each parameter that several ranks share, the number of those that have its gradient; and the
            sums of the numbers, which are 0 where they are 0 on all ranks.
        """
        having: dict[Tensor, int] = {}
        for members in self.members():
            own = [p for p in parameters if p in self.shared and self.shared[p].members is members]
            if own:
                counts = torch.tensor([*(p in present for p in own), *numbers], device=local(own[0]).device)
                total = members.summed(counts).tolist()
                having.update(zip(own, total, strict=False))
                numbers = total[len(own) :]
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
    ) -> None:
        """Find the owners of the matrices of parameters that the same ranks share."""
        lines = []
        wanted: dict[Tensor, torch.dtype | None] = {}
        found: list[tuple[Tensor, Spread, Found]] = []
        checksums = _checksums([p for _, _, p, spread in parameters if spread.placements is None])
        for name, group, parameter, spread in parameters:
            lines.append(f"{name}, {tuple(parameter.shape)}, {parameter.dtype}, {spread.placements}")
            if spread.placements is None:
                lines[-1] += f", values with the checksum {next(checksums)}"
            self.shared[parameter] = Shared(members, spread, ())
            if group["direction"] in row_state:
                wanted[parameter] = group["orthogonalize_dtype"]
                kept = len(row_state[group["direction"]])
                matrices = matrices_of(name, group, tuple(parameter.shape), spread, kept)
                found += [(parameter, spread, matrix) for matrix in matrices]
        owners = owners_of([matrix.work for _, _, matrix in found], members.size)
        for (parameter, _, matrix), owner in zip(found, owners, strict=True):
            short = min(matrix.single.rows, matrix.single.cols)
            dtype = wanted[parameter] or working_dtype_for(parameter.dtype, parameter.device, short)
            cost = f"{matrix.work.multiply_adds} multiply-adds in {dtype}"
            lines.append(f"{matrix.work.name} of {cost} on rank {owner}")
        members.check_same(lines, local(parameters[0][2]).device)
        units: dict[Tensor, list[Unit]] = {}
        for (parameter, spread, matrix), owner in zip(found, owners, strict=True):
            routes = tuple(
                Route(box, spread.held(shape), owner, members.rank, spread.covering(box, shape))
                for box, shape in matrix.boxes
            )
            units.setdefault(parameter, []).append(
                Unit(matrix.single.rows, matrix.single.cols, owner, routes)
            )
        for parameter, some in units.items():
            self.shared[parameter] = self.shared[parameter]._replace(units=tuple(some))


def _checksums(parameters: Sequence[Tensor]) -> Iterator[int]:
    """Of each a number that is the same where all bits are: replicas that differ would not train as one."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        p.detach().contiguous().view(integers[p.element_size()]).sum(dtype=torch.int64) for p in parameters
    ]
    return iter(torch.stack([each.to(sums[0].device) for each in sums]).tolist() if sums else [])


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
