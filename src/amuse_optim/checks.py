"""The `Option` class, and checks of option values.

Directions and schedule rules declare their own options with these; `options` collects them in one table.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from torch import Tensor

# Called with an option's name and a value; raises ValueError or TypeError if the value is not allowed.
Check = Callable[[str, Any], None]


@dataclass(frozen=True)
class Option:
    """An option of a parameter group.

    Args:
        default: The value used where neither the group nor the optimizer is given one.
        check: Function of the option's name and a value that raises if the value is not allowed.
    """

    default: Any
    check: Check


def number(constraint: str, within: Callable[[float], bool]) -> Check:
    """A check for finite numbers.

    Args:
        constraint: The condition of `within` in words, such as ">= 0"; used in the message.
        within: Returns True if a finite number is allowed.
    """

    def check(name: str, value: object) -> None:
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"Tensor {name} must be 1-element, got one of shape {tuple(value.shape)}")
            value = value.item()
        if not isinstance(value, (int, float)):
            value = python_number(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a Python number, got {value!r}")
        if not (math.isfinite(value) and within(value)):
            raise ValueError(f"{name} must be finite and {constraint}, got {value!r}")

    return check


def python_number(value: Any) -> Any:
    """A number of another kind (NumPy's) as Python's, which every checkpoint can hold; all else as it is."""
    if type(value) in (int, float, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


not_negative = number(">= 0", lambda value: value >= 0)
positive = number("> 0", lambda value: value > 0)
at_least_1 = number(">= 1", lambda value: value >= 1)
fraction = number("in [0, 1)", lambda value: 0 <= value < 1)


def choice(*allowed: str) -> Check:
    """A check for one of these strings."""

    def check(name: str, value: object) -> None:
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")

    return check


def count(name: str, value: object) -> None:
    """Check for an integer of at least 1."""
    if not isinstance(value, int):
        value = python_number(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value!r}")


def flag(name: str, value: object) -> None:
    """Check for True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def optional(check: Check) -> Check:
    """A check that also lets None pass."""
    return lambda name, value: None if value is None else check(name, value)


def steps(name: str, value: object) -> None:
    """Check for a number of steps, or a fraction of the whole number of steps."""
    if not isinstance(value, (int, float)):
        value = python_number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of steps or a fraction of total_steps, got {value!r}")
    if isinstance(value, int) and value < 0:
        raise ValueError(f"{name} must be >= 0, got {value!r}")
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError(f"{name} must be an integer, or a fraction in (0, 1) of total_steps, got {value!r}")


def kappas(name: str, value: object) -> None:
    """Check for a tuple of different numbers of at least 1."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a tuple of numbers, such as (10.0,), got {value!r}")
    for kappa in value:
        at_least_1(name, kappa)
    if len({f"{kappa:g}" for kappa in value}) < len(value):  # as the state calls them
        raise ValueError(f"{name} must be numbers that differ in their first six digits, got {value!r}")


# What options of other optimizers are called here.
_ELSEWHERE = {
    "adjust_lr_fn": "it is 'scale' here",
    "amsgrad": "there is none",
    "betas": "here they are 'auxiliary_momentum' and 'beta2'; 'beta1' is the interpolation of y",
    "decoupled_weight_decay": "decay is always decoupled",
    "differentiable": "there is none",
    "fused": "there is none; kernels are used by themselves",
    "lr_scale": "give the group an 'lr' of its own",
    "maximize": "there is none; minimize the negative",
    "ns_coefficients": "give 'orthogonalize' a function, or one of its methods",
    "ns_steps": "it is 'orthogonalize_steps' here",
    "warmup": "it is 'warmup_steps' here",
}


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist, with the one that means the same, or the nearest."""
    unknown = f"unknown {kind} {name!r}"
    if name in _ELSEWHERE:
        return f"{unknown}; {_ELSEWHERE[name]}"
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return unknown + (f"; did you mean {nearest[0]!r}?" if nearest else "")
