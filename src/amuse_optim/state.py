"""The state of a parameter and of a group: made, followed, read, and checked before a step."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import averaging
from .buckets import Group, State
from .directions import DIRECTIONS
from .options import check_options, describe
from .precision import state_dtype, working
from .sharding import is_sharded, local, summed, zeros

SEQUENCES = ("z", "x")
_TAKEN = frozenset({"y", "z", "x", "gradient", "update", "step", "beta"})


class Kept(NamedTuple):
    """What a tensor in the state of a parameter is like."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def kept_tensors(parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Kept]:
    """The tensors in the state of a parameter, by name.

    The parameter itself holds y. A rounded y could not give x back, so x is beside z there; and where beta is
    0 and y is not rounded, y is z.
    """
    shape, beta = tuple(parameter.shape), group["beta1"]
    full, own = (state_dtype(parameter.dtype, kind) for kind in ("full", group["state_precision"]))
    rounded = torch.finfo(parameter.dtype).bits < 32
    kept = {"z": Kept(shape, own)} if rounded or beta > 0 else {}
    if rounded or beta == 0:  # with beta = 0 no y makes up for what an average in bfloat16 loses
        kept["x"] = Kept(shape, own if beta > 0 else full)
    found = DIRECTIONS[group["direction"]].state_shapes(group, shape)
    if not _TAKEN.isdisjoint(found):
        raise ValueError(
            f"state_shapes of direction {group['direction']!r} must not name "
            f"{', '.join(_TAKEN & found.keys())}: these are the optimizer's own"
        )
    return kept | {name: Kept(each, own if each == shape else full) for name, each in found.items()}


def kept_tensors_in(group: Mapping[str, Any]) -> Callable[[Tensor], dict[str, Kept]]:
    """`kept_tensors` for the parameters of a group, found once for each shape and dtype."""
    known: dict[object, dict[str, Kept]] = {}

    def kept(parameter: Tensor) -> dict[str, Kept]:
        kind = (parameter.shape, parameter.dtype)
        if kind not in known:
            known[kind] = kept_tensors(parameter, group)
        return known[kind]

    return kept


def initial_state(parameter: Tensor, group: Group) -> State:
    """State of a parameter before its first step: all tensors exist, so checkpoints are complete."""
    state: State = {"step": 0, "beta": group["beta1"]}
    for name, (shape, dtype) in kept_tensors(parameter, group).items():
        if name in SEQUENCES:
            state[name] = parameter.detach().to(dtype, copy=True)
        elif shape == parameter.shape:
            state[name] = torch.zeros_like(parameter.detach(), dtype=dtype)
        else:
            state[name] = zeros(shape, dtype, parameter)
    return state


def started(state: State) -> bool:
    """Whether the parameter has taken a step. Does not look at a number that lies on the device."""
    return isinstance(state["step"], Tensor) or state["step"] > 0


def follow_parameter(parameter: Tensor, state: State, group: Group) -> None:
    """While a parameter has taken no step, z = x = y: follow what was done to the model meanwhile.

    Weights may have been loaded into it, and it may have been moved or converted.
    """
    if started(state):
        return
    fits = all(
        name in state
        and (state[name].device, state[name].shape, state[name].dtype) == (parameter.device, *kept)
        for name, kept in kept_tensors(parameter, group).items()
    )
    if not fits:
        state.clear()
        state.update(initial_state(parameter, group))
    for name in SEQUENCES:
        if name in state:
            state[name].copy_(parameter.detach())


def check_ready(group: Group, states: Mapping[Tensor, State]) -> None:
    """Everything about a group that could stop a step halfway, before the step begins.

    Raises:
        ValueError: For an option that was changed to something impossible, or state that does not fit the
            parameter any more.
    """
    check_options(group)
    kept_in_state = kept_tensors_in(group)
    for index, parameter in enumerate(group["params"]):
        if parameter.grad is None:
            continue
        tensors = kept_in_state(parameter)
        state = states[parameter]
        if not started(state):
            continue
        if isinstance(state["step"], Tensor) and not group["capturable"]:
            raise ValueError(
                f"{describe(group, index)} has its step on the device, from capturable=True: to turn that "
                "off, save the optimizer's state dict and load it into one without"
            )
        missing = [name for name in tensors if name not in state]
        if missing:
            raise ValueError(
                f"{describe(group, index)} ({parameter.dtype}) needs {', '.join(missing)} in its state: it "
                "was converted, or an option was changed (beta1 from or to 0, say), after its first step. Do "
                "either before it"
            )
        kept: Tensor = state[next(iter(tensors))]
        # A transposed .data has the whole's shape but not the parts'; a full state dict is not sharded.
        if is_sharded(parameter) != is_sharded(kept) or local(parameter).shape != local(kept).shape:
            raise ValueError(
                f"{describe(group, index)} does not fit its state, of shape {tuple(kept.shape)}"
                f"{' in shards' if is_sharded(kept) else ''}: it was replaced or sharded after its "
                "first step. Build a new optimizer for it, or load state that was saved for it"
            )
        if parameter.device != kept.device:
            raise ValueError(
                f"{describe(group, index)} is on {parameter.device}, its state on {kept.device}: move "
                "the model before the first step, or save, move, and load the optimizer's state dict"
            )


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


@torch.no_grad()
def show_average(members: Iterable[tuple[Tensor, State]]) -> None:
    """Put x into the parameters, and y into their state. If anything raises, all parameters hold y again."""
    done = list(members)
    try:
        for parameter, state in done:
            state["y"] = parameter.detach().clone()
            parameter.copy_(averaged_value(parameter, state))
    except BaseException:  # out of memory, say
        for parameter, state in done:
            if "y" in state:
                parameter.copy_(state.pop("y"))
        raise


@torch.no_grad()
def show_gradient_point(members: Iterable[tuple[Tensor, State]]) -> None:
    """Put y back into the parameters, bit for bit; it stays in their state.

    A parameter that has taken no step keeps what it holds, which may have been loaded into it.
    """
    moving = [(parameter, state) for parameter, state in members if started(state)]
    for parameter, state in moving:
        if "y" not in state:
            state["y"] = interpolated_value(parameter, state).to(parameter.dtype)
    for parameter, state in moving:
        parameter.copy_(state["y"])


def fast_value(parameter: Tensor, state: State) -> Tensor:
    """Z of a parameter, as precise as it is kept; where beta is 0, the parameter's y."""
    z: Tensor = state["z"] if "z" in state else state.get("y", parameter.detach())
    return working(z)


def averaged_value(parameter: Tensor, state: State) -> Tensor:
    """The average x of a parameter that holds y, as precise as it is kept; a new tensor."""
    if not started(state):
        return parameter.detach().clone()
    if "x" in state:
        x: Tensor = state["x"]
        return working(x.clone())
    y = parameter.detach().to(working(state["z"]).dtype, copy=True)
    return averaging.decode_([y], [working(state["z"])], state["beta"])[0]


def interpolated_value(parameter: Tensor, state: State) -> Tensor:
    """The gradient point y of a parameter that holds x; a new tensor.

    Raises:
        ValueError: Where beta is 0 and neither y nor z was kept.
    """
    if "z" not in state and "y" not in state:
        raise ValueError(
            "the state holds x alone: it was saved in eval mode with beta1=0 and read in train mode; call "
            "optimizer.eval() before reading it, so that y is read as well"
        )
    x = working(state["x"] if "x" in state else parameter.detach())
    return averaging.interpolate([fast_value(parameter, state)], [x], state["beta"])[0]
