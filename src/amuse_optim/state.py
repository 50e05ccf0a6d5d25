"""The state of a parameter and of a group: made, advanced, checked before a step and before loading."""

import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from . import sequences
from .precision import state_dtype, working
from .schedule import Clock, Coefficients, advance
from .settings import OPTIONS, Group, check_lr, describe

State = dict[str, Any]

CLOCK_KEYS = tuple(field.name for field in fields(Clock))
SCHEDULE_KEYS = (
    "warmup_steps",
    "t0_steps",
    "c_warmup_steps",
    "beta1",
    "rho",
    "beta_clock",
    "r",
    "weight_lr_power",
    "parity",
)


def initial_state(parameter: Tensor, group: Group) -> State:
    """State of a parameter before its first step: all tensors exist, so checkpoints are complete."""
    z = parameter.detach().to(state_dtype(parameter.dtype, group["state_precision"]), copy=True)
    state: State = {"step": 0, "beta": group["beta1"], "z": z}
    if torch.finfo(parameter.dtype).bits < 32:  # a rounded y could not give x back
        state["x"] = z.clone()
    if group["direction"] == "muon":
        state["momentum_buffer"] = torch.zeros_like(z)
    elif group["direction"] == "adamw":
        state["exp_avg_sq"] = torch.zeros_like(z)
        if group["auxiliary_momentum"] > 0:
            state["exp_avg"] = torch.zeros_like(z)
    return state


def synchronize(parameter: Tensor, state: State) -> None:
    """While a parameter has taken no step, z = x = y: follow weights that were loaded into the model."""
    if state["step"] == 0:
        for name in ("z", "x"):
            if name in state:
                state[name].copy_(parameter.detach())


def averaged_value(parameter: Tensor, state: State) -> Tensor:
    """The average x of a parameter that holds y, in the parameter's dtype; a new tensor."""
    synchronize(parameter, state)
    if state["step"] == 0:
        return parameter.detach().clone()
    if "x" in state:
        x: Tensor = state["x"]
        return x.to(parameter.dtype, copy=True)
    return sequences.recover(parameter.detach(), working(state["z"]), state["beta"])


def interpolated_value(parameter: Tensor, state: State) -> Tensor:
    """The gradient point y of a parameter that holds x; a new tensor."""
    x = working(state["x"] if "x" in state else parameter.detach())
    return sequences.interpolate(working(state["z"]), x, state["beta"])


def advanced_clock(group: Group) -> tuple[Clock, Coefficients]:
    """The clock and coefficients of a group's next step; the group is left as it is."""
    clock = Clock(**{name: group[name] for name in CLOCK_KEYS})
    lr = check_lr(group["lr"])
    return advance(clock, lr, **{name: group[name] for name in SCHEDULE_KEYS})


def gradients_usable(groups: list[Group]) -> bool:
    """Check every gradient before anything changes; False if the step is to be skipped."""
    skip = False
    for group in groups:
        present = [(i, p.grad) for i, p in enumerate(group["params"]) if p.grad is not None]
        for i, gradient in present:
            if gradient.layout != torch.strided:
                raise TypeError(
                    f"the gradient of {describe(group, i)} is sparse, which AMUSE does not support: "
                    "build the embedding with sparse=False"
                )
        if group["nonfinite"] == "ignore":
            continue
        largest = torch._foreach_norm([gradient for _, gradient in present], float("inf"))
        finite = torch.stack([norm.isfinite().to(largest[0].device) for norm in largest])
        if finite.all():
            continue
        if group["nonfinite"] == "raise":
            bad = [describe(group, i) for (i, _), ok in zip(present, finite.tolist(), strict=True) if not ok]
            raise FloatingPointError(
                f"the gradient of {bad[0]} is not finite ({len(bad)} of {len(present)} gradients of its "
                "group). Nothing was changed. Lower the learning rate or clip, or pass nonfinite='skip'"
            )
        skip = True
    return not skip


def function_name(function: Callable[..., Any]) -> str:
    """How a state dict names a function it cannot hold."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def check_fits(state_dict: dict[str, Any], groups: list[Group]) -> None:
    """Refuse a state dict that does not fit before any of it is taken over."""
    saved_groups = state_dict["param_groups"]
    if [len(group["params"]) for group in saved_groups] != [len(group["params"]) for group in groups]:
        raise ValueError(
            "state_dict must have the same parameter groups: it has groups of "
            f"{[len(group['params']) for group in saved_groups]} parameters, the optimizer of "
            f"{[len(group['params']) for group in groups]}"
        )
    for saved, group in zip(saved_groups, groups, strict=True):
        missing = [name for name in (*OPTIONS, *CLOCK_KEYS, "mode") if name not in saved]
        if missing:
            raise ValueError(f"state_dict was not made by AMUSE: its groups lack {', '.join(missing)}")
        for index, (i, parameter) in enumerate(zip(saved["params"], group["params"], strict=True)):
            z = state_dict["state"].get(i, {}).get("z")
            if z is None or z.shape != parameter.shape:
                found = "no z" if z is None else f"a z of shape {tuple(z.shape)}"
                raise ValueError(f"state_dict holds {found} for {describe(group, index)}")


def warn_of_differences(saved_groups: list[Group], groups: list[Group]) -> None:
    """Warn once of options that a state dict is about to change."""
    different = sorted(
        {
            name
            for saved, group in zip(saved_groups, groups, strict=True)
            for name in OPTIONS
            if name != "lr" and not callable(group[name]) and saved[name] != group[name]
        }
    )
    if different:
        warnings.warn(
            f"the loaded state has other values than this optimizer for {', '.join(different)}; "
            "the loaded ones are used",
            stacklevel=4,
        )
