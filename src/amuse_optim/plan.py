"""The plan of a step: which parameters move together, and the updates of their directions."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from .buckets import Bucket, Group, Slot, State
from .clock import place_on_device
from .directions import DIRECTIONS
from .directions.base import Update
from .measurement import Measurement
from .options import describe
from .sharding import is_sharded
from .state import follow_parameter, is_point, kept_names_in


def buckets_of(
    group: Group, number: int, states: Mapping[Tensor, State], measurement: Measurement | None
) -> list[Bucket]:
    """The parameters of a group that have a gradient, those together that are alike.

    Raises:
        ValueError: With `capturable=True`, for a parameter that cannot be captured.
    """
    for parameter in group["params"]:
        if parameter.grad is not None or group["capturable"]:
            follow_parameter(parameter, states[parameter], group)
    if group["capturable"]:
        place_on_device(group, states)
    alike: dict[object, list[Slot]] = {}
    names_of = kept_names_in(group)
    for index, parameter in enumerate(group["params"]):
        if parameter.grad is None:
            continue
        state = states[parameter]
        _, names = names_of(parameter)
        slot = Slot.of(group, index, state, names)
        step, beta = state["step"], state["beta"]
        if group["capturable"]:  # on the device: alike where they are the same tensors
            step, beta = id(step), id(beta)
            _check_capturable(group, slot)
        dtypes = parameter.dtype, parameter.grad.dtype, state[names[0]].dtype
        key: object = (parameter.device, type(parameter), dtypes, names, step, beta)
        alike.setdefault(index if group["foreach"] is False else key, []).append(slot)
    return [Bucket(group, number, slots, measurement) for slots in alike.values()]


def _check_capturable(group: Group, slot: Slot) -> None:
    if slot.copies or (DIRECTIONS[group["direction"]].for_matrices and is_sharded(slot.param)):
        raise ValueError(
            f"{describe(group, slot.index)} cannot take part with capturable=True: it and its state must be "
            "plain dense tensors of one memory format, and matrices must not be sharded"
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
        found.setdefault(id(bucket), DIRECTIONS[bucket.group["direction"]].updates(bucket))
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
