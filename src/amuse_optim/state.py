"""The state of a parameter and of a group: made, read, advanced, and checked before a step."""

from collections.abc import Mapping, MutableMapping
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import sequences
from .directions import Direction
from .distributed import is_sharded, local, summed
from .precision import state_dtype, working
from .schedule import Clock, Coefficients, advance
from .settings import Group, check_lr, check_options, describe, layout_of

State = MutableMapping[str, Any]

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


def state_tensors(parameter: Tensor, group: Group) -> tuple[str, ...]:
    """The names of the tensors a parameter of this group has in its state."""
    return _state_tensors(parameter.dtype, group["direction"], group["auxiliary_momentum"] > 0)


@cache
def _state_tensors(dtype: torch.dtype, direction: Direction, first_moment: bool) -> tuple[str, ...]:
    names = ["z"]
    if torch.finfo(dtype).bits < 32:  # a rounded y could not give x back
        names.append("x")
    if direction == "muon":
        names.append("momentum_buffer")
    elif direction == "adamw":
        names.append("exp_avg_sq")
        if first_moment:
            names.append("exp_avg")
    return tuple(names)


def initial_state(parameter: Tensor, group: Group) -> State:
    """State of a parameter before its first step: all tensors exist, so checkpoints are complete."""
    z = parameter.detach().to(state_dtype(parameter.dtype, group["state_precision"]), copy=True)
    state: State = {"step": 0, "beta": group["beta1"]}
    for name in state_tensors(parameter, group):
        state[name] = z.clone() if name in ("z", "x") else torch.zeros_like(z)
    return state


def started(state: State) -> bool:
    """Whether the parameter has taken a step. Does not look at a number that lies on the device."""
    return isinstance(state["step"], Tensor) or state["step"] > 0


def synchronize(parameter: Tensor, state: State, group: Group) -> None:
    """While a parameter has taken no step, z = x = y: follow what was done to the model meanwhile.

    Weights may have been loaded into it, and it may have been moved or converted.
    """
    if started(state):
        return
    z: Tensor = state["z"]
    expected = state_dtype(parameter.dtype, group["state_precision"])
    present = all(name in state for name in state_tensors(parameter, group))
    if not present or (z.shape, z.device, z.dtype) != (parameter.shape, parameter.device, expected):
        state.clear()
        state.update(initial_state(parameter, group))
    for name in ("z", "x"):
        if name in state:
            state[name].copy_(parameter.detach())


def check_ready(group: Group, states: Mapping[Tensor, State]) -> None:
    """Everything about a group that could stop a step halfway, before the step begins.

    Raises:
        ValueError: For an option that was changed to something impossible, or state that does not fit the
            parameter any more.
    """
    check_options(group)
    for index, parameter in enumerate(group["params"]):
        if parameter.grad is None:
            continue
        if group["direction"] == "muon":
            layout_of(group, parameter)
        state = states[parameter]
        if not started(state):
            continue
        if isinstance(state["step"], Tensor) and not group["capturable"]:
            raise ValueError(
                f"{describe(group, index)} has its step on the device, from capturable=True: to turn that "
                "off, save the optimizer's state dict and load it into one without"
            )
        # A transposed .data has the whole's shape but not the parts'; a full state dict is not sharded.
        if is_sharded(parameter) != is_sharded(state["z"]) or (
            local(parameter).shape != local(state["z"]).shape
        ):
            raise ValueError(
                f"{describe(group, index)} does not fit its state, of shape {tuple(state['z'].shape)}"
                f"{' in shards' if is_sharded(state['z']) else ''}: it was replaced or sharded after its "
                "first step. Build a new optimizer for it, or load state that was saved for it"
            )
        if parameter.device != state["z"].device:
            raise ValueError(
                f"{describe(group, index)} is on {parameter.device}, its state on {state['z'].device}: move "
                "the model before the first step, or save, move, and load the optimizer's state dict"
            )
        missing = [name for name in state_tensors(parameter, group) if name not in state]
        if missing:
            raise ValueError(
                f"{describe(group, index)} ({parameter.dtype}) needs {', '.join(missing)} in its state: it "
                "was converted, or an option was changed, after its first step. Do either before it"
            )


def averaged_value(parameter: Tensor, state: State) -> Tensor:
    """The average x of a parameter that holds y, as precise as it is kept; a new tensor."""
    if not started(state):
        return parameter.detach().clone()
    if "x" in state:
        x: Tensor = state["x"]
        return working(x.clone())
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
        present = [(i, local(p.grad)) for i, p in enumerate(group["params"]) if p.grad is not None]
        for i, gradient in present:
            if gradient.layout != torch.strided:
                raise TypeError(
                    f"the gradient of {describe(group, i)} is sparse, which AMUSE does not support: "
                    "build the embedding with sparse=False"
                )
        present = [(i, gradient) for i, gradient in present if gradient.numel() > 0]
        if group["nonfinite"] == "ignore":
            continue
        bad = [describe(group, i) for i in _not_finite(present)]
        anywhere = len(bad)
        if any(is_sharded(parameter) for parameter in group["params"]):  # all ranks do the same
            count = torch.tensor(len(bad), device=group["params"][0].device)
            anywhere = int(summed(count, group["params"]))
        if not anywhere:
            continue
        if group["nonfinite"] == "raise":
            whose = f"the gradient of {bad[0]} is" if bad else "gradients on another rank are"
            raise FloatingPointError(
                f"{whose} not finite ({anywhere} of {len(group['params'])} parameters of the group). Nothing "
                "was changed. Lower the learning rate or clip, or pass nonfinite='skip'"
            )
        skip = True
    return not skip


def _not_finite(gradients: list[tuple[int, Tensor]]) -> list[int]:
    """The indices of those with an infinite or NaN entry."""
    if not gradients:
        return []
    norms = torch._foreach_norm([gradient for _, gradient in gradients])
    if torch.stack([norm.to(norms[0].device) for norm in norms]).isfinite().all():
        return []
    # A norm overflows where no entry does: only now is it worth looking at every entry.
    return [i for i, gradient in gradients if not gradient.isfinite().all()]
