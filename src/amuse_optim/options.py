"""The options of a parameter group: one table of defaults and checks, and the errors for invalid groups."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor

from . import schedule
from .buckets import Group
from .checks import Option, choice, count, flag, not_negative, optional, python_number, unknown_name
from .directions import DIRECTIONS
from .orthogonalize import ITERATIONS
from .precision import StatePrecision, is_low
from .schedule import DecayAt

# Name to default and check. The docstring of `AMUSE`, or of the direction that reads it, says what it means.
OPTIONS: dict[str, Option] = {
    "lr": Option(0.01, not_negative),
    "lr_rest": Option(None, optional(not_negative)),
    **schedule.OPTIONS,
    "total_steps": Option(None, optional(count)),
    "weight_decay": Option(0.0, not_negative),
    "weight_decay_at": Option("z", choice(*get_args(DecayAt))),
    "direction": Option(None, choice(*DIRECTIONS)),
    **{name: option for direction in DIRECTIONS.values() for name, option in direction.options.items()},
    "nonfinite": Option("raise", choice("raise", "skip", "ignore")),
    "foreach": Option(None, optional(flag)),
    "capturable": Option(False, flag),
    "state_precision": Option("full", choice(*get_args(StatePrecision))),
}
_TENSORS = ("lr", "lr_rest")  # the options that may be tensors
UNORDERED = "params must be an ordered collection, got a set: its order differs between runs"
# The values that a step can have that is captured in a CUDA graph.
_CAPTURABLE: dict[str, tuple[Any, ...]] = {
    "nonfinite": ("ignore",),
    "foreach": (None, True),
    "state_precision": ("full",),
    "orthogonalize": ITERATIONS,
}
# What `AMUSE.anytime` sets otherwise than `AMUSE`; docs/anytime.md has the measurements behind it.
ANYTIME: Mapping[str, Any] = {
    "beta1": 0.0,
    "rho": 0.0,
    "r": 13.0,
    "lr_decay": 0.5,
    "momentum": 0.9,
    "auxiliary_momentum": 0.9,
}
# What torch itself, its learning-rate schedulers and users who name their groups put beside the options.
FOREIGN_KEYS = ("params", "param_names", "initial_lr", "name")


class OptimizerModeError(RuntimeError):
    """Raised by a call that the optimizer's present mode does not allow: `step()` in eval mode."""


def describe(group: Mapping[str, Any], index: int) -> str:
    """How messages call the parameter at this index of a group: by name where it has one, and shape."""
    names = group.get("param_names") or ()
    label = repr(names[index]) if index < len(names) else f"number {index} of its group"
    return f"parameter {label} of shape {tuple(group['params'][index].shape)}"


def complete_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option, with those that are given.

    Raises:
        TypeError: For one that does not exist.
    """
    for name in given:
        if name not in OPTIONS:
            raise TypeError(unknown_name("option", name, OPTIONS))
    return {name: option.default for name, option in OPTIONS.items()} | dict(given)


def complete_group(group: Group, defaults: Mapping[str, Any]) -> Group:
    """A copy of `group` with every option set and checked; `group` itself is left as it is.

    Args:
        group: What a user passes to `add_param_group`: "params" (a tensor, tensors, or (name, tensor)
            pairs) and any of `OPTIONS`.
        defaults: The options given to the optimizer.

    Returns:
        A new group, its parameters as tensors with their names beside them; fractional lengths are resolved
        to steps, and `t0_steps` and `lr_rest` applied.

    Raises:
        ValueError: For an unknown key, a value out of range, or a parameter the direction cannot take.
        TypeError: For a value or a parameter of the wrong kind.
    """
    if not isinstance(group, dict):
        raise TypeError(f"param_group must be a dict, got {type(group).__name__}")
    if "params" not in group:
        raise ValueError("a parameter group must have 'params'")
    for key in group:
        if key not in OPTIONS and key not in FOREIGN_KEYS:
            known = unknown_name("parameter group key", key, (*OPTIONS, *FOREIGN_KEYS))
            raise ValueError(f"{known}: nothing would read it, and a misspelt option would have no effect")
    if isinstance(group["params"], (set, frozenset)):
        raise TypeError(UNORDERED)

    given = {**defaults, **group}
    complete = {key: _plain(value) if key in OPTIONS else value for key, value in given.items()}
    tensors, names = _named(group["params"])
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        raise ValueError("a parameter group must not hold a parameter twice: it would be updated twice")
    complete["params"] = tensors
    if names is not None:
        complete["param_names"] = names
    if complete["direction"] is None:
        known = ", ".join(map(repr, DIRECTIONS))
        raise ValueError(
            "no direction for these parameters: pass param_groups(model) instead of model.parameters(), "
            f"which gives matrices to Muon and the rest to AdamW, or say direction= one of {known}"
        )
    for name, warm_ups in schedule.LENGTHS.items():
        if complete[name] is None and warm_ups is not None:
            complete[name] = warm_ups * complete["warmup_steps"]
        complete[name] = _in_steps(name, complete[name], complete["total_steps"])
    OPTIONS["direction"].check("direction", complete["direction"])
    if "lr" not in group and complete["lr_rest"] is not None:
        OPTIONS["lr_rest"].check("lr_rest", complete["lr_rest"])
        if not DIRECTIONS[complete["direction"]].for_matrices:
            complete["lr"] = complete["lr_rest"]
    check_options(complete)
    _check_parameters(complete)
    return complete


def _plain(value: Any) -> Any:
    """A value that every checkpoint can hold: Python's numbers, and a tuple of them in place of a list."""
    if isinstance(value, (list, tuple)):
        return tuple(map(python_number, value))
    return python_number(value)


@contextmanager
def names_hidden(*groups: Group) -> Iterator[None]:
    """Context manager: groups without their names, because torch wants either all groups named or none."""
    named = [(group, group.pop("param_names")) for group in groups if "param_names" in group]
    try:
        yield
    finally:
        for group, names in named:
            group["param_names"] = names


def check_options(group: Mapping[str, Any]) -> None:
    """Check the options of a complete group.

    Raises:
        ValueError: For a value out of range.
        TypeError: For a value of the wrong kind.
    """
    capturable = group["capturable"]
    for name, option in OPTIONS.items():
        value = group[name]
        if isinstance(value, Tensor):
            if name not in _TENSORS:
                raise TypeError(f"{name} must not be a tensor: only lr and lr_rest may")
            if capturable and value.numel() == 1:
                continue  # looking would wait for the device
        option.check(name, value)
    for name in schedule.LENGTHS:
        _in_steps(name, group[name], None)
    schedule.check(group)
    if capturable:
        _check_capturable(group)


def _in_steps(name: str, value: int | float, total_steps: int | None) -> int:
    """A length in steps, given as such or as a fraction of the whole."""
    OPTIONS[name].check(name, value)
    if isinstance(value, int):
        return value
    value = python_number(value)
    if isinstance(value, int):
        return value
    if total_steps is None:
        raise ValueError(f"{name}={value!r} is a fraction: say total_steps, or give the number of steps")
    return round(value * total_steps)


def _check_capturable(group: Mapping[str, Any]) -> None:
    for name, allowed in _CAPTURABLE.items():
        if group[name] not in allowed:
            raise ValueError(
                f"{name} must be {' or '.join(map(repr, allowed))} with capturable=True, got "
                f"{group[name]!r}: other values are not supported while a CUDA graph captures the step"
            )


def _check_parameters(group: Group) -> None:
    for index, parameter in enumerate(group["params"]):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"params must be tensors or (name, tensor) pairs, got {type(parameter).__name__}")
        if parameter.is_complex() or not parameter.is_floating_point():
            raise TypeError(
                f"{describe(group, index)} is {parameter.dtype}: only real floating-point parameters can be "
                "optimized; for a complex one keep nn.Parameter(torch.view_as_real(value).clone()), and take "
                "torch.view_as_complex of it in the forward pass"
            )
        if parameter.layout != torch.strided:
            raise TypeError(
                f"{describe(group, index)} has the layout {parameter.layout}: only dense parameters can be "
                "optimized; make a parameter of its to_dense()"
            )
        if any(
            size > 1 and stride == 0 for size, stride in zip(parameter.shape, parameter.stride(), strict=True)
        ):
            raise ValueError(
                f"{describe(group, index)} is expanded: several of its entries are one in memory and cannot "
                "be updated separately; make a contiguous parameter of it with .clone()"
            )
        if group["capturable"] and is_low(parameter.dtype):
            raise ValueError(
                f"{describe(group, index)} is {parameter.dtype}: capturable=True is for float32 and float64"
            )
        if group["state_precision"] == "lean" and parameter.dtype == torch.float64:
            raise ValueError(
                f"{describe(group, index)} is torch.float64: state_precision='lean' keeps its state in "
                "bfloat16 and is for float32 and below; use 'full'"
            )
        try:
            DIRECTIONS[group["direction"]].state_shapes(group, parameter.shape)
        except ValueError as error:
            hint = ""
            if DIRECTIONS[group["direction"]].for_matrices:
                hint = (
                    f". Matrices and kernels take {group['direction']!r}; put everything else into a group "
                    "with another direction, as param_groups(model) does"
                )
            raise ValueError(f"{describe(group, index)}: {error}{hint}") from None


def _named(params: Tensor | Iterable[Any]) -> tuple[list[Tensor], list[str] | None]:
    """The tensors of a group's "params", and their names where (name, tensor) pairs are given."""
    members = [params] if isinstance(params, Tensor) else list(params)
    if members and all(isinstance(member, tuple) for member in members):
        names, tensors = zip(*members, strict=True)
        return list(tensors), list(names)
    if any(isinstance(member, tuple) for member in members):
        raise ValueError(
            "all optimizer params should be with/without names. Some names are missing in a group that has "
            "(name, parameter) pairs: name all of its parameters, or put the others into a group of their own"
        )
    return members, None
