"""The numbers of the schedule on the device (`capturable=True`), where a CUDA graph can replay whole steps.

What changes from step to step is then a scalar of float64 that is written in place: the clock of a group, and
the step and beta of its parameters. Parameters that have always moved together share theirs.
"""

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from .schedule import CoefficientsOnDevice, advance_on_device
from .settings import Group
from .state import CLOCK_KEYS, SCHEDULE_KEYS, State, synchronize

_READINGS = ("lr_t", "c_t", "beta_t")
_COUNTS = ("t", "step")


def place(group: Group, states: Mapping[Tensor, State]) -> None:
    """Bring the numbers of a group and of its parameters to the device; those already there stay.

    A parameter that has no gradient keeps its step and beta, so from here on it shares them no longer.
    """
    for parameter in group["params"]:
        synchronize(parameter, states[parameter], group)
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


def count(states: Iterable[State]) -> None:
    """Count a step of parameters, once where they share the number."""
    for step in {id(state["step"]): state["step"] for state in states}.values():
        step.add_(1)


def advanced(group: Group) -> tuple[dict[str, Tensor], CoefficientsOnDevice]:
    """The clock and coefficients of a group's next step, after `place`; the group is left as it is."""
    clock = {name: group[name] for name in CLOCK_KEYS}
    return advance_on_device(clock, group["lr"], **{name: group[name] for name in SCHEDULE_KEYS})


def record(group: Group, clock: Mapping[str, Tensor], now: CoefficientsOnDevice) -> None:
    """Write the clock and the coefficients of the step that was taken."""
    for key, value in {**clock, "lr_t": now.lr, "c_t": now.c, "beta_t": now.beta}.items():
        group[key].copy_(value)


def on_host(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """A group or state with Python's numbers in place of those on the device; waits for it."""
    found = dict(numbers)
    for key in (*CLOCK_KEYS, *_READINGS, "step", "beta"):
        if isinstance(found.get(key), Tensor):
            value = found[key].item()
            found[key] = int(value) if key in _COUNTS else value
    return found
