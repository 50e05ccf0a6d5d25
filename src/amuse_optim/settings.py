"""The options of a parameter group: names, defaults' completion, ranges, and what goes wrong, in words."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from .directions import Direction, Scale
from .layout import Layout, matrix_layout
from .orthogonalize import ITERATIONS, Method
from .precision import StatePrecision
from .schedule import BetaClock, Parity
from .sequences import DecayAt

Group = dict[str, Any]

NONFINITE = ("raise", "skip", "ignore")

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda v: v >= 0, ">= 0"),
    "beta1": (lambda v: 0 < v < 1, "in (0, 1)"),
    "rho": (lambda v: v >= 0, ">= 0"),
    "r": (lambda v: v >= 0, ">= 0"),
    "weight_lr_power": (lambda v: v >= 0, ">= 0"),
    "momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "beta2": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "auxiliary_momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "eps": (lambda v: v > 0, "> 0"),
    "weight_decay": (lambda v: v >= 0, ">= 0"),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "direction": get_args(Direction),
    "beta_clock": get_args(BetaClock),
    "weight_decay_at": get_args(DecayAt),
    "scale": get_args(Scale),
    "orthogonalize": get_args(Method),
    "nonfinite": NONFINITE,
    "parity": get_args(Parity),
    "state_precision": get_args(StatePrecision),
}
_LENGTHS = ("warmup_steps", "t0_steps", "c_warmup_steps")
_COUNTS = ("orthogonalize_steps", "num_heads", "conv_groups", "total_steps")
_FLAGS = ("nesterov", "stacked", "capturable")
_OPTIONAL_FLAGS = ("foreach",)

OPTIONS = (
    *_RANGES,
    *_CHOICES,
    *_LENGTHS,
    *_COUNTS,
    *_FLAGS,
    *_OPTIONAL_FLAGS,
    "orthogonalize_dtype",
    "split_rows",
)
UNORDERED = "params must be an ordered collection, got a set: its order differs between runs"
# What torch itself and its learning-rate schedulers put beside the options of a group.
FOREIGN_KEYS = ("params", "param_names", "initial_lr")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist, with the nearest one that does."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"unknown {kind} {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else "")


def describe(group: Mapping[str, Any], index: int) -> str:
    """How messages call the parameter at this index of a group: by name where it has one, and shape."""
    names = group.get("param_names")
    label = repr(names[index]) if names else f"number {index} of its group"
    return f"parameter {label} of shape {tuple(group['params'][index].shape)}"


def check_lr(lr: float | Tensor) -> float:
    """A learning rate as a number.

    Raises:
        ValueError: If it is negative or not finite.
    """
    value = float(lr)
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"lr must be finite and >= 0, got {value!r}")
    return value


def _check_number(name: str, value: object) -> None:
    if name == "lr" and isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a Python number, got {value!r}")
    within, constraint = _RANGES[name]
    if not (math.isfinite(value) and within(value)):
        raise ValueError(f"{name} must be finite and {constraint}, got {value!r}")


def _check_choice(name: str, value: object) -> None:
    if name == "orthogonalize" and callable(value):
        return
    if value not in _CHOICES[name]:
        allowed = ", ".join(map(repr, _CHOICES[name]))
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value!r}")


def _steps(name: str, value: object, total_steps: int | None) -> int:
    """A length in steps, given as such or as a fraction of the whole."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of steps or a fraction of total_steps, got {value!r}")
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value!r}")
        return value
    if not 0 < value < 1:
        raise ValueError(f"{name} must be an integer, or a fraction in (0, 1) of total_steps, got {value!r}")
    if total_steps is None:
        raise ValueError(f"{name}={value!r} is a fraction: say total_steps, or give the number of steps")
    return round(value * total_steps)


def _check_t0(group: Mapping[str, Any]) -> None:
    least = max(2, group["c_warmup_steps"] + 2)
    if group["rho"] > 0 and group["t0_steps"] < least:
        raise ValueError(
            f"t0_steps must be at least 2 and greater than c_warmup_steps + 1, here >= {least}, got "
            f"{group['t0_steps']} (it defaults to warmup_steps={group['warmup_steps']}): up to T0 the "
            "averaging window has to grow, or beta would jump to 1. Give t0_steps, or rho=0 to keep beta"
        )


def _check_capturable(group: Mapping[str, Any]) -> None:
    for name, ok, needed in (
        ("nonfinite", group["nonfinite"] == "ignore", "'ignore'"),
        ("foreach", group["foreach"] is not False, "None or True"),
        ("state_precision", group["state_precision"] == "full", "'full'"),
        ("orthogonalize", group["orthogonalize"] in ITERATIONS, f"one of {', '.join(map(repr, ITERATIONS))}"),
    ):
        if not ok:
            raise ValueError(
                f"{name} must be {needed} with capturable=True, got {group[name]!r}: anything else looks at "
                "values from the host, which a captured step cannot"
            )


def _check_parameters(group: Group) -> None:
    for index, parameter in enumerate(group["params"]):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"params must be tensors or (name, tensor) pairs, got {type(parameter).__name__}")
        if parameter.is_complex() or not parameter.is_floating_point():
            raise TypeError(
                f"{describe(group, index)} is {parameter.dtype}: only real floating-point parameters can be "
                "optimized; view complex ones with torch.view_as_real"
            )
        if any(
            size > 1 and stride == 0 for size, stride in zip(parameter.shape, parameter.stride(), strict=True)
        ):
            raise ValueError(
                f"{describe(group, index)} is expanded: several of its entries are one in memory, and cannot "
                "move apart; make it a parameter of its own with .clone()"
            )
        if group["capturable"] and torch.finfo(parameter.dtype).bits < 32:
            raise ValueError(
                f"{describe(group, index)} is {parameter.dtype}: capturable=True is for float32 and float64"
            )
        if group["state_precision"] == "lean" and parameter.dtype == torch.float64:
            raise ValueError(
                f"{describe(group, index)} is torch.float64: state_precision='lean' keeps its state in "
                "bfloat16 and is for float32 and below; use 'full'"
            )
        if group["direction"] == "muon":
            try:
                layout_of(group, parameter)
            except ValueError as error:
                raise ValueError(
                    f"{describe(group, index)}: {error}. Matrices and kernels take 'muon'; put everything "
                    "else into a group with direction='adamw' or 'sgd', as param_groups(model) does"
                ) from None


def layout_of(group: Mapping[str, Any], parameter: Tensor) -> Layout:
    """The layout of one parameter of a group with the "muon" direction."""
    rows = group["split_rows"]
    return matrix_layout(
        tuple(parameter.shape),
        split_rows=None if rows is None else tuple(rows),
        num_heads=group["num_heads"],
        conv_groups=group["conv_groups"],
        stacked=group["stacked"],
    )


def _named(params: Tensor | Iterable[Any]) -> tuple[list[Tensor], list[str] | None]:
    """The tensors of a group's "params", and their names where (name, tensor) pairs are given."""
    members = [params] if isinstance(params, Tensor) else list(params)
    if members and all(isinstance(member, tuple) for member in members):
        names, tensors = zip(*members, strict=True)
        return list(tensors), list(names)
    return members, None


def complete_group(group: Group, defaults: Mapping[str, Any]) -> Group:
    """A copy of `group` with every option set and checked; `group` itself is left as it is.

    Args:
        group: What a user passes to `add_param_group`: "params" (a tensor, tensors, or (name, tensor)
            pairs) and any of `OPTIONS`.
        defaults: The options given to the optimizer.

    Returns:
        A new group; fractional lengths are resolved to steps and `t0_steps` to its default.

    Raises:
        ValueError: For an unknown key, a value out of range, or a parameter the direction cannot take.
        TypeError: For a value or a parameter of the wrong kind.
    """
    if "params" not in group:
        raise ValueError("a parameter group must have 'params'")
    for key in group:
        if key not in OPTIONS and key not in FOREIGN_KEYS:
            raise ValueError(unknown_name("parameter group key", key, (*OPTIONS, *FOREIGN_KEYS)))
    if isinstance(group["params"], (set, frozenset)):
        raise TypeError(UNORDERED)

    complete = {**defaults, **group}
    tensors, names = _named(complete["params"])
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        raise ValueError("a parameter group must not hold a parameter twice: it would be updated twice")
    complete["params"] = tensors if names is None else list(zip(names, tensors, strict=True))
    if complete["direction"] is None:
        raise ValueError(
            "no direction for these parameters: pass param_groups(model) instead of model.parameters(), "
            "which gives matrices to Muon and the rest to AdamW, or say direction='muon', 'adamw' or 'sgd'"
        )
    for name in _LENGTHS:  # checked below, once the fractions are resolved
        complete[name] = complete["warmup_steps"] if complete[name] is None else complete[name]
        complete[name] = _steps(name, complete[name], complete["total_steps"])
    check_options(complete)
    _check_parameters({**complete, "params": tensors, "param_names": names})
    return complete


def check_options(group: Mapping[str, Any]) -> None:
    """Check the options of a complete group.

    Raises:
        ValueError: For a value out of range.
        TypeError: For a value of the wrong kind.
    """
    for name in _RANGES:
        value = group[name]
        if group["capturable"] and isinstance(value, Tensor) and value.ndim == 0:
            continue  # looking would wait for the device
        _check_number(name, value)
    for name in _CHOICES:
        _check_choice(name, group[name])
    for name in _LENGTHS:
        _steps(name, group[name], None)
    for name in _COUNTS:
        if group[name] is not None:
            _check_count(name, group[name])
    for name in _FLAGS:
        if not isinstance(group[name], bool):
            raise TypeError(f"{name} must be True or False, got {group[name]!r}")
    for name in _OPTIONAL_FLAGS:
        if group[name] is not None and not isinstance(group[name], bool):
            raise TypeError(f"{name} must be True, False or None, got {group[name]!r}")
    if group["orthogonalize_dtype"] not in (None, torch.float32, torch.bfloat16, torch.float64):
        raise ValueError(
            "orthogonalize_dtype must be None, torch.float32, torch.bfloat16 or torch.float64, got "
            f"{group['orthogonalize_dtype']!r}"
        )
    rows = group["split_rows"]
    if rows is not None:
        if not isinstance(rows, (tuple, list)):
            raise TypeError(f"split_rows must be a tuple of row counts, got {rows!r}")
        for size in rows:
            _check_count("split_rows", size)
    _check_t0(group)
    if group["capturable"]:
        _check_capturable(group)
