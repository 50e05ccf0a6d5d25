"""The numbers of a group: its clock and coefficients, as Python's numbers or on its device (`capturable`)."""

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from .buckets import Group, State
from .checks import python_number
from .schedule import Clock, Coefficients, schedule_of

CLOCK_KEYS = tuple(field.name for field in fields(Clock))
_READINGS = ("lr_t", "c_t", "beta_t")
_COUNTS = ("t", "step", "idle_steps")


def initial_numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """The clock and coefficients of a group before its first step."""
    return asdict(Clock()) | {"lr_t": 0.0, "c_t": 1.0, "beta_t": group["beta1"], "skipped_steps": 0}


def advanced(group: Group) -> tuple[Clock, Coefficients]:
    """The clock and coefficients of a group's next step; the group is left as it is."""
    lr = group["lr"] if group["capturable"] else float(group["lr"])
    if isinstance(lr, Tensor):
        lr = lr.reshape(())
    return schedule_of(group).advance(Clock(**{name: group[name] for name in CLOCK_KEYS}), lr)


def record(group: Group, clock: Clock, now: Coefficients) -> None:
    """Write the clock and coefficients of the step that was taken, in place where they lie on the device."""
    for key, value in {**vars(clock), "lr_t": now.lr, "c_t": now.c, "beta_t": now.beta}.items():
        if isinstance(group[key], Tensor):
            group[key].fill_(value)
        else:
            group[key] = value


def place_on_device(group: Group, states: Mapping[Tensor, State]) -> None:
    """Turn the numbers of a group and its parameters into tensors on the device, for capture in a CUDA graph.

    Every number that changes from step to step becomes a float64 scalar tensor that is written in place.
    Parameters with equal step and beta share these two tensors; one without a gradient gets its own.
    """
    device = group["params"][0].device
    _to_device(group, (*CLOCK_KEYS, *_READINGS), device)
    alike: dict[tuple[float, float], tuple[Tensor, Tensor]] = {}
    moving = [states[p] for p in group["params"] if p.grad is not None]
    for state in moving:
        if not isinstance(state["beta"], Tensor):
            numbers = (state["step"], state["beta"])
            if numbers not in alike:
                _to_device(state, ("step", "beta"), device)
                alike[numbers] = (state["step"], state["beta"])
            state["step"], state["beta"] = alike[numbers]
    shared = {id(state["beta"]) for state in moving}
    for parameter in group["params"]:
        state = states[parameter]
        if parameter.grad is None and id(state["beta"]) in shared:
            state["step"], state["beta"] = state["step"].clone(), state["beta"].clone()


def _to_device(numbers: MutableMapping[str, Any], keys: Iterable[str], device: torch.device) -> None:
    for key in keys:
        if not isinstance(numbers[key], Tensor):
            numbers[key] = torch.tensor(float(numbers[key]), dtype=torch.float64, device=device)


def on_host(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """A group or state with Python's numbers in place of others, on a device or NumPy's; waits for it."""
    found = {key: python_number(value) for key, value in numbers.items()}
    for key in (*CLOCK_KEYS, *_READINGS, "step", "beta"):
        if isinstance(found.get(key), Tensor):
            value = found[key].item()
            found[key] = int(value) if key in _COUNTS else value
    return found
