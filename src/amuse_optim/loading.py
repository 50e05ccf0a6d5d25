"""State dicts: what is checked before one is taken over, and what is said about it."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .settings import OPTIONS, Group, check_options, describe
from .state import CLOCK_KEYS, state_tensors

_FUNCTION = "function "


def function_label(function: Callable[..., Any]) -> str:
    """What a state dict holds in place of a function."""
    return _FUNCTION + str(getattr(function, "__qualname__", type(function).__qualname__))


def labelled(value: object) -> object:
    """The option as a state dict holds it."""
    return function_label(value) if callable(value) else value


def completed(saved_groups: list[Group], groups: list[Group]) -> list[Group]:
    """Saved groups with the options they lack, because an older version wrote them, and functions put back.

    Args:
        saved_groups: Of a state dict that fits; left as they are.
        groups: The optimizer's present ones.
    """
    whole = []
    for saved, group in zip(saved_groups, groups, strict=True):
        new = {name: group[name] for name in OPTIONS if name not in saved} | saved
        if str(new["orthogonalize"]).startswith(_FUNCTION) and callable(group["orthogonalize"]):
            new["orthogonalize"] = group["orthogonalize"]
        whole.append(new)
    return whole


def check_fits(state_dict: Mapping[str, Any], groups: list[Group]) -> None:
    """Refuse a state dict that does not fit, before any of it is taken over.

    Raises:
        ValueError: With what does not fit, and whose.
    """
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
        missing = [name for name in (*CLOCK_KEYS, "mode", "direction") if name not in saved]
        if missing:
            raise ValueError(f"state_dict was not made by AMUSE: its groups lack {', '.join(missing)}")
    for saved, group in zip(completed(saved_groups, groups), groups, strict=True):
        _check_function(saved["orthogonalize"])
        check_options(saved)
        pairs = zip(saved.get("param_names") or (), group.get("param_names") or (), strict=False)
        for theirs, ours in pairs:  # none where either side has no names
            if theirs == ours:
                continue
            raise ValueError(
                f"state_dict has parameter {theirs!r} where the optimizer has {ours!r}: build the "
                "groups in the order they were saved in"
            )
        for index, (i, parameter) in enumerate(zip(saved["params"], group["params"], strict=True)):
            state = state_dict["state"].get(i, {})
            for name in ("step", "beta", *state_tensors(parameter, saved)):
                value = state.get(name)
                if value is None:
                    raise ValueError(
                        f"state_dict holds no {name} for {describe(group, index)} ({parameter.dtype}); state "
                        "of float32 parameters has no x and cannot go on with lower ones"
                    )
                if name in ("step", "beta"):
                    continue
                if not isinstance(value, Tensor) or value.shape != parameter.shape:
                    found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
                    raise ValueError(f"state_dict holds a {name} {found} for {describe(group, index)}")


def _check_function(orthogonalize: object) -> None:
    if isinstance(orthogonalize, str) and orthogonalize.startswith(_FUNCTION):
        name = orthogonalize.removeprefix(_FUNCTION)
        raise ValueError(
            f"state_dict was saved with orthogonalize={name}, a function, which it cannot hold: build the "
            "optimizer with that function before loading"
        )


def warn_of_differences(saved_groups: list[Group], groups: list[Group]) -> None:
    """Warn once of options that a state dict is about to change; learning rates are meant to differ."""
    different = sorted(
        {
            name
            for saved, group in zip(saved_groups, groups, strict=True)
            for name in OPTIONS
            if name != "lr" and name in saved and saved[name] != labelled(group[name])
        }
    )
    if different:
        warnings.warn(
            f"the loaded state has other values than this optimizer for {', '.join(different)}; "
            "the loaded ones are used",
            stacklevel=4,
        )


def copied(value: object, device: torch.device) -> object:
    """A value of the state for a parameter on `device`: a copy in its own precision."""
    return value.to(device, copy=True) if isinstance(value, Tensor) else value
