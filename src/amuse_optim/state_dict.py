"""State dicts: their format, the checks before one is loaded, and the warning about changed options."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .buckets import Group
from .clock import on_host
from .kernels import PLAIN
from .module_tree import WRAPPERS
from .options import OPTIONS, check_options, describe
from .precision import is_low
from .schedule import averaging_window
from .sharding import is_sharded
from .state import kept_tensors
from .warn import warn

# The form of state dicts, kept in every group as "format"; docs/state_dicts.md says what changed when.
FORMAT = 2
_FUNCTION = "function "


def portable(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict for `torch.load(weights_only=True)`: Python numbers, and functions replaced by names."""
    groups = [on_host(group) for group in state_dict["param_groups"]]
    for group in groups:
        group["orthogonalize"] = _labelled(group["orthogonalize"])
    states = {i: on_host(state) for i, state in state_dict["state"].items()}
    return {**state_dict, "state": states, "param_groups": groups}


@contextmanager
def taking_over(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Context manager: a state dict loaded inside is checked and completed; its tensors keep their dtypes.

    The check is a pre-hook that runs after all others. A post-hook that runs before all others copies the
    tensors again, since torch casts them to the dtype of the parameter.
    """
    taken: dict[str, Any] = {}

    def check(_: torch.optim.Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
        _check_form(loaded, optimizer.param_groups)
        groups = _completed(loaded["param_groups"], optimizer.param_groups)
        states = {i: _found(loaded["state"], i) for group in groups for i in group["params"]}
        _check_fits(groups, states, optimizer.param_groups)
        _warn_of_differences(loaded["param_groups"], optimizer.param_groups)
        taken.update(loaded | {"param_groups": groups, "state": states})
        return taken

    def copy(_: torch.optim.Optimizer) -> None:
        for saved, group in zip(taken["param_groups"], optimizer.param_groups, strict=True):
            for i, parameter in zip(saved["params"], group["params"], strict=True):
                for key, value in taken["state"][i].items():
                    optimizer.state[parameter][key] = _copied(value, parameter)

    handles = [
        optimizer.register_load_state_dict_pre_hook(check),
        optimizer.register_load_state_dict_post_hook(copy, prepend=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copied(value: Any, parameter: Tensor) -> Any:
    """A value of a state dict for a parameter; of its shape, it lies in memory as the parameter does."""
    if not isinstance(value, Tensor):
        return value
    if value.shape == parameter.shape and type(parameter) in PLAIN and not is_sharded(value):
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value.to(parameter.device, copy=True)


def _found(states: Mapping[Any, Any], i: Any) -> dict[str, Any]:
    """The state of a parameter in a state dict, its step and beta as Python's numbers.

    `torch.distributed.checkpoint`, given an optimizer, reads tensors into the entry i that the optimizer made
    and puts numbers, which it cannot read in place, into another one under the key str(i).
    """
    return on_host({**(states.get(i) or {}), **(states.get(str(i)) or {})})


def _labelled(value: object) -> object:
    """An option as a state dict holds it: a function by its name; as a tuple where older ones had a list."""
    if not callable(value):
        return tuple(value) if isinstance(value, list) else value
    return _FUNCTION + str(getattr(value, "__qualname__", type(value).__qualname__))


def _completed(saved_groups: list[Group], groups: list[Group]) -> list[Group]:
    """Saved groups in the present form: with options that an older version did not know, and functions.

    Args:
        saved_groups: The groups of a state dict that passed `_check_form`; not changed.
        groups: The optimizer's present groups, which supply missing options and functions.
    """
    whole = []
    for saved, group in zip(saved_groups, groups, strict=True):
        new = {name: group[name] for name in OPTIONS if name not in saved} | {"averages": ()} | on_host(saved)
        new["averages"] = tuple(new["averages"])
        new.setdefault("readout", None)
        if str(new["orthogonalize"]).startswith(_FUNCTION) and callable(group["orthogonalize"]):
            new["orthogonalize"] = group["orthogonalize"]
        if "format" not in new:
            new["relative_weight_sum"] = _relative(new, new.pop("weight_sum"))
        if "idle_steps" not in new:
            new["idle_steps"] = new["t"] if new["lr_max"] == 0.0 and new["weight_lr_power"] > 0.0 else 0
            new["last_window"] = averaging_window(new.get("c_t", 1.0), new["reference_window"])
        whole.append(new | {"format": FORMAT})
    return whole


def _relative(group: Group, weight_sum: float) -> float:
    """The sum of averaging weights of format 1 in units of the largest weight, t^r lr_max^weight_lr_power."""
    if weight_sum == 0.0:
        return 0.0
    relative = weight_sum / group["t"] ** group["r"] / group["lr_max"] ** group["weight_lr_power"]
    return float(relative)


def _check_form(state_dict: Mapping[str, Any], groups: list[Group]) -> None:
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(f"state_dict must have 'state' and 'param_groups', it has no {key!r}")
    saved_groups = state_dict["param_groups"]
    if [len(group["params"]) for group in saved_groups] != [len(group["params"]) for group in groups]:
        raise ValueError(
            "state_dict must have the same parameter groups: it has groups of "
            f"{[len(group['params']) for group in saved_groups]} parameters, the optimizer of "
            f"{[len(group['params']) for group in groups]}"
        )
    for saved in saved_groups:
        if saved.get("format", 1) not in (1, FORMAT):
            raise ValueError(
                f"state_dict has format {saved['format']!r}, this version of amuse-optim reads "
                f"1 to {FORMAT}: load it with the version that wrote it, or a newer one"
            )
        weight_sum = "relative_weight_sum" if "format" in saved else "weight_sum"
        keys = ("t", weight_sum, "lr_max", "reference_window", "mode", "direction")
        missing = [name for name in keys if name not in saved]
        if missing:
            raise ValueError(f"state_dict was not made by AMUSE: its groups lack {', '.join(missing)}")


def _check_fits(saved_groups: list[Group], states: Mapping[int, Any], groups: list[Group]) -> None:
    """Refuse completed groups or state that do not fit, before any of it is taken over."""
    _check_order(saved_groups, groups)
    for saved, group in zip(saved_groups, groups, strict=True):
        _check_function(saved["orthogonalize"])
        check_options(saved)
        for index, (i, parameter) in enumerate(zip(saved["params"], group["params"], strict=True)):
            state = states[i]
            shapes = {name: kept.shape for name, kept in kept_tensors(parameter, saved).items()}
            if saved["mode"] == "eval":  # what the saved weights are not
                points = () if saved["readout"] is None else ("y", "x")
                shapes |= dict.fromkeys(points if "z" in shapes else ("y", *points), tuple(parameter.shape))
            for name in ("step", "beta", *shapes):
                if state.get(name) is None:
                    raise ValueError(
                        f"state_dict holds no {name} for {describe(group, index)} ({parameter.dtype})"
                        f"{_reason(name, saved, parameter)}"
                    )
            for name, shape in shapes.items():
                value = state[name]
                if not isinstance(value, Tensor) or value.shape != shape:
                    found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
                    raise ValueError(f"state_dict holds a {name} {found} for {describe(group, index)}")


def _reason(name: str, saved: Group, parameter: Tensor) -> str:
    """Why a state dict may lack a point, and what to do."""
    if saved["mode"] == "eval" and name in ("x", "y") and (name == "y" or saved["readout"] is not None):
        kappa = "" if saved["readout"] is None else f"kappa={saved['readout']:g}"
        return (
            f": it was saved in eval mode and read in train mode; call optimizer.eval({kappa}) before "
            "reading it, so that this is read as well"
        )
    if name == "x" and is_low(parameter.dtype):
        return "; state of float32 parameters has no x and cannot be loaded for a lower precision"
    return ""


def _check_order(saved_groups: list[Group], groups: list[Group]) -> None:
    """Refuse parameters that were saved in another order; other names alone do not matter, as in torch."""
    elsewhere: dict[str, str] = {}
    for saved, group in zip(saved_groups, groups, strict=True):
        # No pairs where either side has no names.
        pairs = zip(saved.get("param_names") or (), group.get("param_names") or (), strict=False)
        plain = ((_plain_name(ours), _plain_name(theirs)) for theirs, ours in pairs)
        elsewhere |= {ours: theirs for ours, theirs in plain if theirs != ours}
    while renamed := [ours for ours, theirs in elsewhere.items() if theirs not in elsewhere]:
        for ours in renamed:
            del elsewhere[ours]
    for ours, theirs in elsewhere.items():  # what is left changed places among themselves
        raise ValueError(
            f"state_dict has parameter {theirs!r} where the optimizer has {ours!r}: build the groups in the "
            "order they were saved in"
        )


def _plain_name(name: str) -> str:
    """A parameter's name without what wrappers of modules put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _check_function(orthogonalize: object) -> None:
    if isinstance(orthogonalize, str) and orthogonalize.startswith(_FUNCTION):
        name = orthogonalize.removeprefix(_FUNCTION)
        raise ValueError(
            f"state_dict was saved with orthogonalize={name}, a function, which it cannot hold: build the "
            "optimizer with that function before loading"
        )


def _warn_of_differences(saved_groups: list[Group], groups: list[Group]) -> None:
    """Warn once of options that a state dict is about to change; learning rates are meant to differ."""
    different = sorted(
        {
            name
            for saved, group in zip(({"averages": ()} | s for s in saved_groups), groups, strict=True)
            for name in OPTIONS
            if name not in ("lr", "lr_rest") and name in saved
            if _labelled(saved[name]) != _labelled(group[name])
        }
    )
    if different:
        warn(
            f"the loaded state has other values than this optimizer for {', '.join(different)}; "
            "the loaded ones are used",
        )
