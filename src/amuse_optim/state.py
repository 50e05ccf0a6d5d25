"""The state of a parameter: made, followed, found again, and read."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import averaging
from .buckets import Group, State
from .directions import DIRECTIONS
from .kernels import PLAIN
from .options import describe
from .precision import is_low, state_dtype, working
from .schedule import AVERAGE, PowerAverage
from .sharding import zeros
from .warn import warn

_TAKEN = frozenset({"y", "z", "x", "gradient", "step", "beta"})


def is_point(name: str) -> bool:
    """Whether what the state calls so is a point in the space of the weights: z, x, or an average of z."""
    return name in ("z", "x") or name.startswith(AVERAGE)


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
    rounded = is_low(parameter.dtype)
    kept = {"z": Kept(shape, own)} if rounded or beta > 0 else {}
    if rounded or beta == 0:  # with beta = 0 no y makes up for what an average in bfloat16 loses
        kept["x"] = Kept(shape, own if beta > 0 else full)
    found = DIRECTIONS[group["direction"]].state_shapes(group, shape)
    taken = [name for name in found if name in _TAKEN or name.startswith(AVERAGE)]
    if taken:
        raise ValueError(
            f"state_shapes of direction {group['direction']!r} must not name {', '.join(taken)}: these are "
            "the optimizer's own"
        )
    kept |= {name: Kept(each, own if each == shape else full) for name, each in found.items()}
    # Last: random bits depend on the places of the others.
    return kept | {PowerAverage(kappa).name: Kept(shape, full) for kappa in group["averages"]}


def kept_names_in(group: Mapping[str, Any]) -> Callable[[Tensor], tuple[Set[str], tuple[str, ...]]]:
    """The names of what is in the state of a group's parameters, and of what has the parameter's shape.

    Found once for each shape and dtype.
    """
    known: dict[object, tuple[Set[str], tuple[str, ...]]] = {}

    def names(parameter: Tensor) -> tuple[Set[str], tuple[str, ...]]:
        kind = (parameter.shape, parameter.dtype)
        if kind not in known:
            kept = kept_tensors(parameter, group)
            known[kind] = kept.keys(), tuple(name for name in kept if kept[name].shape == kind[0])
        return known[kind]

    return names


@torch.inference_mode(False)
def initial_state(parameter: Tensor, group: Group) -> State:
    """State of a parameter before its first step: all tensors exist, so checkpoints are complete."""
    state: State = {"step": 0, "beta": group["beta1"]}
    for name, (shape, dtype) in kept_tensors(parameter, group).items():
        if is_point(name):
            state[name] = parameter.detach().to(dtype, copy=True)
        else:
            state[name] = fresh(parameter, shape, dtype)
    if group["mode"] == "eval":
        state["y"] = parameter.detach().clone()
        if group.get("readout") is not None:
            state.setdefault("x", parameter.detach().clone())
    return state


def fresh(parameter: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros for the state of a parameter; of its shape, they lie in memory as it does."""
    if shape == parameter.shape:
        return torch.zeros_like(parameter.detach(), dtype=dtype)
    return zeros(shape, dtype, parameter)


def complete_states(groups: Sequence[Group], states: MutableMapping[Any, State]) -> None:
    """Make state for parameters that have none, and drop that of parameters which are in no group any more.

    Frameworks exchange the parameters in the groups after construction, and users empty `optimizer.state`.
    Warns where a parameter took the place of one of its shape that had taken steps.

    Raises:
        ValueError: If the state of a parameter is gone that may have taken steps; nothing has changed then.
    """
    lacking = []
    for group in groups:
        for index, parameter in enumerate(group["params"]):
            state = states.get(parameter, ())
            if "step" not in state or "beta" not in state:
                lacking.append((group, index, parameter))
    if not lacking and len(states) == sum(len(group["params"]) for group in groups):
        return
    present = {parameter for group in groups for parameter in group["params"]}
    gone = [key for key in states if isinstance(key, Tensor) and key not in present]
    for group, index, parameter in lacking:
        exchanged = len(gone) >= len(lacking) and not states.get(parameter)
        if group["t"] > 0 and not exchanged:
            raise ValueError(
                f"the state of {describe(group, index)} is not in optimizer.state, and its group has taken "
                f"{int(group['t'])} steps. If it is new, give it to add_param_group instead of the group's "
                "list. If its state was removed, put it back, load a state dict, or call "
                "accept_weights(optimizer, [parameter]) to go on from its weights as they stand"
            )
    moved = [key.shape for key in gone if "step" in states[key] and started(states[key])]
    for key in gone:
        del states[key]
    replacing = []
    for group, index, parameter in lacking:
        states[parameter] = initial_state(parameter, group)
        if parameter.shape in moved:
            moved.remove(parameter.shape)
            replacing.append(describe(group, index))
    for name in replacing:
        warn(
            f"{name} took the place of one that has taken steps: its z, x and momenta begin anew from the "
            "weights as they stand"
        )


def hold_exactly(parameter: Tensor, state: State, group: Group) -> None:
    """Make a parameter that holds a rounded y hold the exact one, where it can: in float32 and float64.

    It was converted, or state of one in lower precision was loaded for it, since its last step. With the
    exact y its state needs z or x alone.
    """
    if "x" in state and "z" in state and parameter.dtype in (torch.float32, torch.float64):
        y = averaging.interpolate([working(state["z"])], [working(state["x"])], state["beta"])[0]
        parameter.copy_(y)
        del state["x" if group["beta1"] > 0 else "z"]


def started(state: State) -> bool:
    """Whether the parameter has taken a step. Does not look at a number that lies on the device."""
    return isinstance(state["step"], Tensor) or state["step"] > 0


def emptied(tensor: Tensor) -> Tensor:
    """What a rank has in place of a tensor that another one keeps: no entries, in as many dimensions."""
    return tensor.new_empty((0, *tensor.shape[1:]))


def is_emptied(tensor: Tensor, shape: Sequence[int]) -> bool:
    """Whether a tensor has no entries where it would have some, if it were whole."""
    return tensor.shape != torch.Size(shape) and tensor.shape == (0, *shape[1:])


def follow_parameter(parameter: Tensor, state: State, group: Group) -> None:
    """While a parameter has taken no step, z = x = y: follow what was done to the model meanwhile.

    Weights may have been loaded into it, and it may have been moved or converted.
    """
    if started(state):
        return
    kept = kept_tensors(parameter, group)
    strides = torch.empty_like(parameter, device="meta").stride() if type(parameter) in PLAIN else None
    elsewhere = [name for name in kept if name in state and is_emptied(state[name], kept[name].shape)]

    def fits(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        if name not in state or (state[name].device, state[name].dtype) != (parameter.device, dtype):
            return False
        placed = strides in (None, state[name].stride()) or shape != parameter.shape
        return name in elsewhere or (state[name].shape == shape and placed)

    if not all(fits(name, *each) for name, each in kept.items()):
        state.clear()
        state.update(initial_state(parameter, group))
        state.update({name: emptied(state[name]) for name in elsewhere})
    for name in state:
        if is_point(name):
            state[name].copy_(parameter.detach())


@torch.inference_mode(False)  # which allows gradients, so no_grad comes inside
@torch.no_grad()
def show_average(members: Iterable[tuple[Tensor, State]], kappa: float | None = None) -> None:
    """Put an average into the parameters, and y into their state.

    If anything raises, all parameters hold y again.

    Args:
        members: Parameters that hold y, and their state.
        kappa: Which of the averages that are kept for reading; x, which the parameters do not hold then, is
            put into the state too. None means x.
    """
    done = list(members)
    added = [state for _, state in done if kappa is not None and "x" not in state]
    try:
        for parameter, state in done:
            state["y"] = parameter.detach().clone()
            if kappa is not None and "x" not in state:
                state["x"] = averaged_value(parameter, state)
            parameter.copy_(averaged_value(parameter, state, kappa))
    except BaseException:  # out of memory, say
        for parameter, state in done:
            if "y" in state:
                parameter.copy_(state.pop("y"))
        for state in added:
            state.pop("x", None)
        raise


@torch.no_grad()
def show_gradient_point(members: Iterable[tuple[Tensor, State]]) -> None:
    """Put y back into the parameters, bit for bit; it stays in their state.

    A parameter that has taken no step keeps what it holds, which may have been loaded into it.
    """
    moving = [(parameter, state) for parameter, state in members if started(state)]
    for parameter, state in moving:
        if "y" not in state or (is_low(state["y"].dtype) and not is_low(parameter.dtype)):
            state["y"] = interpolated_value(parameter, state).to(parameter.dtype)
    for parameter, state in moving:
        parameter.copy_(state["y"])


def fast_value(parameter: Tensor, state: State) -> Tensor:
    """Z of a parameter, as precise as it is kept; where beta is 0, the parameter's y."""
    z: Tensor = state["z"] if "z" in state else state.get("y", parameter.detach())
    return working(z)


def averaged_value(parameter: Tensor, state: State, kappa: float | None = None) -> Tensor:
    """An average of a parameter that holds y, as precise as it is kept; a new tensor.

    Args:
        parameter: The parameter, which holds y.
        state: What the optimizer keeps of this parameter.
        kappa: Which of the averages that are kept for reading; None means x.
    """
    if not started(state):
        return parameter.detach().clone()
    if kappa is not None:
        average: Tensor = state[PowerAverage(kappa).name]
        return average.clone()
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


def sequences(parameter: Tensor, state: State, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """Z, x and y of a parameter in either mode, as precise as they are kept; not to be written to."""
    if not started(state):
        value = working(parameter.detach())
        return value, value, value
    z = fast_value(parameter, state)
    if mode == "train":
        return z, averaged_value(parameter, state), working(parameter.detach())
    x = working(state["x"] if "x" in state else parameter.detach())
    return z, x, interpolated_value(parameter, state)


def averages_of(state: State) -> list[Tensor]:
    """The averages of z that a parameter's state keeps for reading."""
    return [value for name, value in state.items() if name.startswith(AVERAGE)]


def store_sequences(
    parameter: Tensor, state: State, z: Tensor, x: Tensor, mode: str, readout: float | None
) -> None:
    """Set z and x of a parameter, and y to what follows from what can be stored of them.

    Args:
        parameter: It holds y in train mode; in eval mode x, or the average that `readout` says.
        state: Its state, with the averages as they are to be.
        z: The new z.
        x: The new x.
        mode: The optimizer's mode.
        readout: In eval mode the kappa of the average that the parameter holds; None for x.
    """
    if "z" in state:
        z = working(state["z"].copy_(z))
    if "x" in state:
        x = working(state["x"].copy_(x))
    y = averaging.interpolate([z], [x], state["beta"])[0]
    if mode == "train":
        parameter.copy_(y)
    else:
        parameter.copy_(x if readout is None else state[PowerAverage(readout).name])
        state["y"] = y.to(parameter.dtype)
