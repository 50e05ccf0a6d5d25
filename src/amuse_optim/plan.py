"""The plan of a step: which parameters move together, and the updates of their directions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from torch import Tensor

from .buckets import Bucket, Group, Slot, State
from .clock import place_on_device
from .directions import DIRECTIONS
from .directions.base import Update
from .directions.muon import Muon
from .measurement import Measurement
from .options import describe
from .ranks import Division
from .sharding import is_sharded
from .state import follow_parameter, hold_exactly, is_point, kept_names_in

# The directions that divide their matrices over ranks, and what they keep for each row.
_ROW_STATE = {name: each.row_state for name, each in DIRECTIONS.items() if isinstance(each, Muon)}


_dtype = attrgetter("dtype")


def are_shared(groups: Sequence[Group], process_group: Any) -> bool:
    """Whether ranks share parameters."""
    return process_group is not None or any(is_sharded(p) for group in groups for p in group["params"])


def division_of(
    groups: Sequence[Group], process_group: Any, *, shard_state: bool, before: Division | None
) -> Division:
    """Divide the matrices of groups over the ranks that share them.

    Args:
        groups: The optimizer's parameter groups, the same on all ranks.
        process_group: The ranks that replicate plain parameters, if they are known.
        shard_state: Whether the owner alone keeps the momentum of replicated matrices.
        before: The division so far, whose process groups are used again; None if there was none.
    """
    return Division(groups, process_group, _ROW_STATE, shard_state=shard_state, before=before)


def buckets_of(
    groups: Mapping[int, Group],
    states: Mapping[Tensor, State],
    gradients: Mapping[Tensor, Tensor],
    measurements: Mapping[int, Measurement],
    division: Division | None,
) -> list[Bucket]:
    """The parameters that have a gradient, those of a group together that are alike.

    Args:
        groups: The groups that take part, by their index in the optimizer.
        states: The optimizer's state by parameter; before a parameter's first step z and x are set to its
            weights.
        gradients: The gradient of each parameter that has one.
        measurements: What collects the step's measurements for `telemetry`, by index of the group, where that
            is wanted.
        division: Who orthogonalizes what, where ranks share parameters.

    Raises:
        ValueError: With `capturable=True`, for a parameter that cannot be captured; the step counts and
            clocks of all groups are as they were.
    """
    slots = {number: _slots(group, states, gradients) for number, group in groups.items()}
    captured = {number: group for number, group in groups.items() if group["capturable"]}
    for number, group in captured.items():
        for slot in slots[number]:
            _check_capturable(group, slot, division)
    for group in captured.values():
        place_on_device(group, states)
    return [
        Bucket(group, number, alike, measurements.get(number), division)
        for number, group in groups.items()
        for alike in _alike(group, slots[number])
    ]


def _slots(group: Group, states: Mapping[Tensor, State], gradients: Mapping[Tensor, Tensor]) -> list[Slot]:
    """The parameters of a group that have a gradient."""
    slots = []
    names_of = kept_names_in(group)
    for index, parameter in enumerate(group["params"]):
        state = states[parameter]
        if parameter in gradients or group["capturable"]:
            follow_parameter(parameter, state, group)
        if parameter in gradients:
            hold_exactly(parameter, state, group)
            _, names = names_of(parameter)
            slots.append(Slot.of(group, index, state, names, gradients[parameter]))
    return slots


def _alike(group: Group, slots: Iterable[Slot]) -> Iterable[list[Slot]]:
    """Slots of one device, dtype, step count and beta together: each list can be one bucket."""
    found: dict[object, list[Slot]] = {}
    for slot in slots:
        parameter: Any = slot.param
        step, beta = slot.state["step"], slot.state["beta"]
        if group["capturable"]:  # on the device: alike where they are the same tensors
            step, beta = id(step), id(beta)
        names, dtypes = tuple(slot.row), tuple(map(_dtype, slot.row.values()))
        sharded = is_sharded(parameter)
        kind = (parameter.device_mesh, parameter.placements) if sharded else type(parameter)
        key: object = (parameter.device, kind, names, dtypes, step, beta)
        found.setdefault(slot.index if group["foreach"] is False else key, []).append(slot)
    return found.values()


def _check_capturable(group: Group, slot: Slot, division: Division | None) -> None:
    divided = division is not None and slot.param in division.shared
    if slot.copies or (DIRECTIONS[group["direction"]].for_matrices and divided):
        raise ValueError(
            f"{describe(group, slot.index)} cannot take part with capturable=True: it and its state must be "
            "plain dense tensors of one memory format, and matrices must not be sharded or divided over ranks"
        )
    first: Tensor = group["params"][0]
    if slot.param.device != first.device:
        devices = ", ".join(sorted({str(slot.param.device), str(first.device)}))
        raise ValueError(
            f"with capturable=True a group must be on one device, not on {devices}: its schedule "
            "is there too. Make a group for each"
        )


def updates_of(buckets: list[Bucket]) -> list[tuple[Bucket, Iterable[Update]]]:
    """The updates of every bucket, computed lazily where possible.

    Updates that can raise, because they call a user's function or a decomposition, are computed here, before
    any parameter changes; if one raises, the directions' state is restored.
    """
    found: dict[int, Iterable[Update]] = {}
    fallible = [b for b in buckets if DIRECTIONS[b.group["direction"]].may_raise(b.group)]
    with _restored_on_error(fallible):
        for bucket in fallible:
            found[id(bucket)] = list(DIRECTIONS[bucket.group["direction"]].updates(bucket))
    for bucket in buckets:
        if id(bucket) not in found:
            found[id(bucket)] = DIRECTIONS[bucket.group["direction"]].updates(bucket)
    return [(bucket, found[id(bucket)]) for bucket in buckets]


@contextmanager
def _restored_on_error(buckets: list[Bucket]) -> Iterator[None]:
    """Put the tensors of the buckets' directions back if something raises inside."""
    kept = [
        (tensor, tensor.clone())
        for bucket in buckets
        for slot in bucket.slots
        for name, tensor in slot.state.items()
        if isinstance(tensor, Tensor) and not is_point(name)
    ]
    try:
        yield
    except BaseException:
        for tensor, before in kept:
            tensor.copy_(before)
        raise
